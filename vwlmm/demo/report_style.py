"""The frame and the looks of the demo's report; `report.py` fills it."""

STYLE = """
:root { color-scheme: light dark; --page: #fafaf7; --card: #ffffff; --ink: #1c1d20; --soft: #666a73; --edge: #deded8;
  --accent: #1f6f8b; --tint: #d5e7ed; --second: #b4690e; --good: #23794a; --bad: #b3261e; --badtint: #fbe9e7; }
@media (prefers-color-scheme: dark) { :root { --page: #131416; --card: #1c1e21; --ink: #e7e6e2; --soft: #9da1aa;
  --edge: #34373c; --accent: #74c2dc; --tint: #21404b; --second: #eeb062; --good: #7fd1a0; --bad: #ff9d94;
  --badtint: #3a2220; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 .2rem; font-size: 1.9rem; line-height: 1.2; letter-spacing: -.01em; }
h2 { margin: 3rem 0 .6rem; font-size: 1.3rem; }
h3 { margin: 1.6rem 0 .5rem; font-size: 1rem; }
p, ul { max-width: 44rem; margin: 0 0 1rem; }
.stages { padding: 0; list-style: none; }
.stages li { margin-bottom: .6rem; padding-left: .9rem; border-left: 3px solid var(--tint); }
.soft, footer { color: var(--soft); font-weight: normal; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .75rem; margin: 1.75rem 0 0; }
.tile { padding: .9rem 1.1rem; background: var(--card); border: 1px solid var(--edge); border-radius: 10px; }
.tile b { display: block; font-size: 1.75rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .9rem; line-height: 1.35; display: block; }
.tile.real b { color: var(--accent); }
.tile.blind b { color: var(--soft); }
.wide { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem .45rem 0; text-align: left; font-weight: normal; border-bottom: 1px solid var(--edge);
  vertical-align: top; }
thead th { color: var(--soft); font-size: .85rem; line-height: 1.3; vertical-align: bottom; }
.scores { width: 100%; min-width: 40rem; table-layout: fixed; }
.scores th:first-child { width: 30%; }
.scores .real th, .scores .real .bar { font-weight: 650; }
.scores .count { color: var(--soft); }
.bar { display: block; padding-bottom: 5px; background: linear-gradient(90deg, var(--accent) calc(100% * var(--share)),
  var(--edge) 0) bottom / 100% 3px no-repeat; }
.scores tr:not(.real) .bar { background-image: linear-gradient(90deg, var(--soft) calc(100% * var(--share)),
  var(--edge) 0); }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); gap: .75rem; }
figure { margin: 0; }
.sample { display: flex; gap: .8rem; padding: .7rem; background: var(--card); border: 1px solid var(--edge);
  border-radius: 10px; }
.sample.wrong { border-color: var(--bad); background: var(--badtint); }
.sample img { width: 72px; height: 72px; flex: none; border-radius: 6px; image-rendering: pixelated;
  object-fit: contain; }
.sample figcaption { display: flex; flex-direction: column; min-width: 0; font-size: .88rem; line-height: 1.35; }
.sample q { color: var(--soft); quotes: none; }
.sample b { font-size: 1.02rem; overflow-wrap: anywhere; }
.verdict { margin-top: auto; color: var(--good); font-size: .82rem; }
.wrong .verdict { color: var(--bad); }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; margin-bottom: 1.25rem; }
.maps img { display: block; width: 100%; height: auto; border-radius: 8px; }
.maps figcaption { margin-top: .3rem; color: var(--soft); font-size: .88rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: .75rem; }
.curves figure { padding: .7rem .8rem .3rem; background: var(--card); border: 1px solid var(--edge);
  border-radius: 10px; }
.curves figcaption { font-size: .88rem; line-height: 1.35; margin-bottom: .3rem; }
.chart { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
.chart path { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.chart .grid { stroke: var(--edge); stroke-width: 1; }
.chart path.training { stroke: var(--accent); }
.chart circle.training { fill: var(--accent); }
.chart path.held-out { stroke: var(--second); stroke-dasharray: 5 4; }
.chart circle.held-out { fill: var(--second); }
.key { white-space: nowrap; margin-left: .6rem; }
.key::before { content: ""; display: inline-block; width: 1.5rem; margin-right: .4rem; vertical-align: middle;
  border-top: 2px solid var(--accent); }
.key.held-out::before { border-top: 2px dashed var(--second); }
pre { max-width: 44rem; padding: .8rem 1rem; overflow-x: auto; background: var(--card); border: 1px solid var(--edge);
  border-radius: 10px; }
code { font: .92rem/1.4 ui-monospace, "DejaVu Sans Mono", monospace; }
details { margin-bottom: 1rem; }
summary { cursor: pointer; padding: .2rem 0; font-weight: 600; }
details table { font-size: .9rem; }
details td { overflow-wrap: anywhere; }
footer { margin-top: 3rem; font-size: .88rem; }
@media print { body { max-width: none; } .sample, .curves figure, .tile { break-inside: avoid; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>vwlmm demo: visual words on easy-VQA</title>
<style>{style}</style>
</head>
<body>
<header><h1>A language model learns to see</h1>
<p class="soft">Visual words on easy-VQA, trained and scored on this machine, {day}.</p>
<div class="tiles">{tiles}</div></header>
<main>
{body}
</main>
<footer>Data: easy-VQA by Victor Zhou (MIT). Weights: packages of the Python index, installed and not redistributed;
where each comes from and its licence stands in the README of its folder under
<code>checkpoints/embedded</code>.</footer>
</body>
</html>
"""
