// Where a browser keeps conversations: IndexedDB, or the memory of the page where the browser refuses it. Heads, which
// the list shows, are stored apart from bodies, so that a long list opens without reading the messages.
//
//     const { store, isKept } = await openStore();
//     await store.put({ id, revision: 3, ... }, body, 2)      // false if another tab has stored more than revision 2

const NAME = "jetmoe-studio-conversations", VERSION = 1;

export async function openStore(indexedDB = globalThis.indexedDB) {
  try {
    return { store: new IndexedStore(await openDatabase(indexedDB)), isKept: true };
  } catch (error) {
    console.info("The browser refuses storage, so conversations last as long as the page:", error);
    return { store: new MemoryStore(), isKept: false };
  }
}

function openDatabase(indexedDB) {
  const opening = indexedDB.open(NAME, VERSION);
  opening.onupgradeneeded = () => {
    for (const name of ["heads", "bodies"]) opening.result.createObjectStore(name);
  };
  return resultOf(opening);
}

function resultOf(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab holds an older version"));
  });
}

class IndexedStore {
  constructor(database) {
    this.database = database;
    database.onversionchange = () => database.close();
  }

  heads() {
    return resultOf(this.database.transaction("heads").objectStore("heads").getAll());
  }

  async body(id) {
    return (await resultOf(this.database.transaction("bodies").objectStore("bodies").get(id))) ?? "";
  }

  // Returns whether it was stored. One transaction, so that no other tab stores in between.
  put(head, body, revision) {
    let isNewest = true;
    return this.change((heads, bodies) => {
      const asking = heads.get(head.id);
      asking.onsuccess = () => {
        isNewest = (asking.result?.revision ?? 0) <= revision;
        if (!isNewest) return;
        heads.put(head, head.id);
        bodies.put(body, head.id);
      };
    }).then(() => isNewest);
  }

  remove(id) {
    return this.change((heads, bodies) => {
      heads.delete(id);
      bodies.delete(id);
    });
  }

  change(work) {
    const transaction = this.database.transaction(["heads", "bodies"], "readwrite");
    work(transaction.objectStore("heads"), transaction.objectStore("bodies"));
    return new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = transaction.onerror = () => reject(transaction.error ?? new Error("not stored"));
    });
  }
}

export class MemoryStore {
  constructor() {
    this.kept = new Map(); // [head, body] by id
  }

  async heads() {
    return [...this.kept.values()].map(([head]) => head);
  }

  async body(id) {
    return this.kept.get(id)?.[1] ?? "";
  }

  async put(head, body, revision) {
    if ((this.kept.get(head.id)?.[0].revision ?? 0) > revision) return false;
    this.kept.set(head.id, [head, body]);
    return true;
  }

  async remove(id) {
    this.kept.delete(id);
  }
}
