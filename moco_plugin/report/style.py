"""The look of a page: system fonts, light and dark, from phones to wide screens."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f6f7f9; --card: #ffffff; --text: #1c2230; --soft: #5b6475; --line: #dfe3ea;
  --accent: #1c63c7; --tint: #eaf1fc; --good: #1d8a4e; --bad: #c8372d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #11141a; --card: #1a1f28; --text: #e6e9ef; --soft: #9aa4b5; --line: #2d3542;
    --accent: #74abff; --tint: #1b2a42; --good: #45c17d; --bad: #ff7467;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
header, main, footer { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 44px; }
h1 { margin: 0 0 10px; font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; text-wrap: balance; }
header p { max-width: 74ch; margin: 0; font-size: 1.15rem; color: var(--soft); }
section {
  margin: 26px 0; padding: 24px 26px; background: var(--card);
  border: 1px solid var(--line); border-radius: 12px;
}
section > :last-child { margin-bottom: 0; }
h2 { margin: 0 0 10px; font-size: 1.25rem; letter-spacing: -0.01em; }
p { max-width: 80ch; margin: 0 0 14px; }
footer { padding-bottom: 40px; color: var(--soft); font-size: .875rem; }

.facts {
  display: grid; gap: 14px; margin: 0 0 20px;
  grid-template-columns: repeat(auto-fit, minmax(190px, 1fr));
}
.facts div { padding: 14px 16px; background: var(--tint); border-radius: 10px; }
.facts dt { font-size: .875rem; color: var(--soft); }
.facts dd { margin: 0; }
.facts .value { font-size: 1.9rem; font-weight: 650; line-height: 1.25; color: var(--accent); }
.facts .note { font-size: .875rem; }

.wide {
  display: inline-block; max-width: 100%; margin: 0 36px 16px 0; overflow-x: auto; vertical-align: top;
}
table { border-collapse: collapse; font-size: .95rem; font-variant-numeric: tabular-nums; }
caption { padding-bottom: 8px; text-align: left; font-size: .9rem; color: var(--soft); }
th, td { padding: 7px 0 7px 22px; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
td { white-space: nowrap; }
thead th { font-size: .82rem; font-weight: 600; color: var(--soft); }
tbody th { font-weight: 500; white-space: nowrap; }
dl.settings { display: grid; grid-template-columns: max-content 1fr; gap: 5px 24px; margin: 0 0 18px; }
dl.settings dt { color: var(--soft); }
dl.settings dd { margin: 0; overflow-wrap: anywhere; }
pre {
  margin: 0 0 16px; padding: 14px 16px; overflow-x: auto; background: var(--ground);
  border: 1px solid var(--line); border-radius: 8px;
  font: .8rem/1.6 ui-monospace, "Cascadia Mono", Menlo, monospace;
}

figure { margin: 0 0 16px; }
figcaption { max-width: 80ch; margin-top: 10px; font-size: .9rem; color: var(--soft); }
img { display: block; max-width: 100%; height: auto; }
.grid { display: grid; gap: 16px; }
.grid.small { grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); }
.grid.medium { grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); gap: 22px; }
.row { display: flex; align-items: center; gap: 10px; overflow-x: auto; }
.card { padding: 12px 14px; border: 1px solid var(--line); border-radius: 10px; }
.tile { flex: none; width: 95px; text-align: center; }
.tile img { width: 100%; border-radius: 6px; }
.tile span, .panel span { display: block; margin-top: 4px; line-height: 1.25; color: var(--soft); }
.tile span { font-size: .75rem; white-space: nowrap; }
.card .tile { flex: 1; width: auto; }
.row > .tile:first-child { margin-right: 8px; }
.row > .tile:first-child span { color: var(--text); font-weight: 600; }
.tile.right img { outline: 3px solid var(--good); outline-offset: -1px; }
.tile.wrong img { outline: 3px dashed var(--bad); outline-offset: -1px; }
.tile.right, .tile.wrong { padding: 2px 0; }
.tile.wrong span { color: var(--bad); }
.panel img { width: 100%; border-radius: 8px; }
.panel b { display: block; margin-bottom: 6px; font-size: .9rem; font-weight: 600; }
.panel span { font-size: .85rem; }
@media (max-width: 640px) {
  header { padding-top: 28px; }
  h1 { font-size: 1.55rem; }
  .wide { margin-right: 0; }
  th, td { padding-left: 14px; }
  section { padding: 18px 16px; border-radius: 10px; }
  dl.settings { grid-template-columns: 1fr; gap: 0; }
  dl.settings dd { margin-bottom: 8px; }
}
"""
