// The units of one router with their counts in a part of the text, sorted.

// Returns { unit, strongest, selected, load } of each unit. `selected` is missing for groups: their experts may be
// selected together, so that tokens can't be told from assignments.
export function unitCounts(trace, part, l, n, isSingle) {
  const load = trace.load(part, l, n, isSingle), selected = isSingle ? trace.countSelected(part, l, n) : [];
  return trace.countStrongest(part, l, n, isSingle).map((strongest, unit) =>
    ({ unit, strongest, selected: selected[unit], load: load[unit] }));
}

// Returns the rows by number, or with the largest value of a column first; ties go to the lower number.
export function sortedBy(rows, column) {
  const value = (row) => (column === "unit" ? -row.unit : row[column]);
  return [...rows].sort((a, b) => value(b) - value(a) || a.unit - b.unit);
}
