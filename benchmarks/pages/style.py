"""The style sheet of an HTML report: light and dark, from a phone's width up."""

from __future__ import annotations

# Colours of series are Okabe and Ito's, which people who see colours differently can tell apart,
# darkened for white and lightened for black until each has 3:1 against the page.
STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --card: #f6f7f9; --text: #1b1f24; --soft: #57606a; --line: #d5dae0;
  --good: #0a6b45; --bad: #a8341c;
  --s0: #0072b2; --s1: #b35900; --s2: #007a5a; --s3: #a8508a; --s4: #8a6d00; --s5: #333c46;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101418; --card: #1a2027; --text: #e8ecf0; --soft: #a4afba; --line: #36404a;
    --good: #4fd1a1; --bad: #ff9a80;
    --s0: #62b6f0; --s1: #f5a04c; --s2: #35c49a; --s3: #e29ac8; --s4: #e8cf4a; --s5: #c9d2db;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 24px 16px 48px; max-width: 1080px;
  background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
a { color: inherit; }
h2 { font-size: 1.2rem; margin: 40px 0 8px; }
h3 { font-size: 1rem; margin: 24px 0 4px; }
p { margin: 4px 0 12px; max-width: 70ch; }
.soft, figcaption, .unit { color: var(--soft); font-size: .87rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 12px;
  margin: 20px 0; padding: 0; list-style: none; }
.facts li { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 14px; overflow-wrap: anywhere; }
.facts b { display: block; font-size: 1.35rem; line-height: 1.25; }
figure { margin: 8px 0 16px; padding: 12px; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; }
svg text { fill: var(--text); font-size: 12px; }
svg .name { fill: var(--soft); }
.plot { display: block; overflow: visible; }
.grid, .tick { stroke: var(--line); stroke-width: 1; }
.front { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; }
.s0 { --c: var(--s0); } .s1 { --c: var(--s1); } .s2 { --c: var(--s2); }
.s3 { --c: var(--s3); } .s4 { --c: var(--s4); } .s5 { --c: var(--s5); }
.mark { fill: var(--c); stroke: var(--card); stroke-width: 1; }
.interval { stroke: var(--c); stroke-width: 1.5; opacity: .45; }
.curve line { stroke: var(--c); stroke-width: 2; }
.point text { font-weight: 600; }
.strip rect { fill: var(--c); }
.strip .all { opacity: .5; } .strip .most { opacity: .4; } .strip .half { opacity: .75; }
.strip .median { stroke: var(--text); stroke-width: 2; }
.key { vertical-align: -3px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 8px 0 0; padding: 0;
  list-style: none; font-size: .87rem; }
.strips { display: grid; grid-template-columns: minmax(130px, 26%) 1fr 64px; gap: 4px 10px;
  align-items: center; }
.strips > .who { overflow-wrap: anywhere; line-height: 1.25; font-size: .87rem; }
.strips > .value { text-align: right; font-variant-numeric: tabular-nums; font-size: .87rem;
  white-space: nowrap; }
.ruler { overflow: visible; }
.axis { grid-column: 2; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; }
.scroll:focus-visible { outline: 2px solid var(--s0); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: .87rem; }
th, td { padding: 7px 10px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
tr:last-child > * { border-bottom: 0; }
thead th { background: var(--card); font-weight: 600; color: var(--soft); }
th:first-child, td.word { text-align: left; }
tbody th { font-weight: 600; text-align: left; background: var(--page); position: sticky; left: 0;
  white-space: normal; overflow-wrap: anywhere; min-width: 18em; max-width: 24em; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
.k0 { --k: var(--s0); } .k1 { --k: var(--s1); } .k2 { --k: var(--s2); }
.k3 { --k: var(--s3); } .k4 { --k: var(--s4); } .k5 { --k: var(--s5); }
.share { display: flex; height: 22px; border-radius: 4px; overflow: hidden; }
.share > span { background: var(--k); border-right: 1px solid var(--card); color: var(--page);
  font-size: .75rem; font-weight: 600; line-height: 22px; text-align: center; overflow: hidden; }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px;
  background: var(--k); vertical-align: -1px; }
details { margin: 6px 0; font-size: .87rem; } summary { cursor: pointer; overflow-wrap: anywhere; }
details .scroll { margin: 6px 0 12px; }
dl { display: grid; grid-template-columns: fit-content(45%) 1fr; gap: 4px 16px; margin: 8px 0; }
dt { color: var(--soft); overflow-wrap: anywhere; } dd { margin: 0; overflow-wrap: anywhere; }
ul.notes { padding-left: 20px; }
@media (max-width: 560px) {
  .strips { grid-template-columns: 1fr 64px; }
  .strips > .who { grid-column: 1 / -1; margin-top: 8px; }
  .axis { grid-column: 1; }
  tbody th { min-width: 36vw; max-width: 36vw; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: 6px; }
}
@media print { body { max-width: none; } figure, .scroll { break-inside: avoid; } }
"""
