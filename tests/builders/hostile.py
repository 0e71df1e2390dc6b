"""Text that tries to run or to load something in a page."""

PAYLOADS = [
    "<img src=x onerror=window.__p=1>",
    "${window.__p=1}",
    "${Object.assign(window,{__p:1})}",
    "{{constructor.constructor('window.__p=1')()}}",
    "[x](javascript:window.__p=1)",
    "<a href='javascript:window.__p=1'>x</a>",
    "<svg onload=window.__p=1><script>window.__p=1</script></svg>",
    "<script>window.__p=1</script>",
    "<iframe srcdoc='<script>parent.__p=1</script>'></iframe>",
    "$$\\href{javascript:window.__p=1}{x}$$",
    "\\(\\unicode{<img src=x onerror=window.__p=1>}\\)",
    '```mermaid\ngraph TD; A["<img src=x onerror=window.__p=1>"]\n```',
    "![x](http://127.0.0.1:9/leak.png)",
    "- list\n\n      <img src='http://127.0.0.1:9/leak.png'>",
    "![x][y]\n\n[y]: http://127.0.0.1:9/leak.png",
    "` `` <img src=x onerror=window.__p=1> ` ``",
]
