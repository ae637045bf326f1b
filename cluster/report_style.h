// The look of report.html.
#pragma once

namespace phalanx {

/// Colours are variables, so that one set of pictures serves light and dark pages and paper. The
/// series' colours (after Okabe and Ito 2008) can be told apart by people who see fewer colours.
inline constexpr char kReportStyle[] = R"(
:root {
  color-scheme: light dark;
  --page: #ffffff; --card: #f6f7f9; --ink: #1c2128; --soft: #59636e; --rule: #d5dae0;
  --good: #14703c; --bad: #b3261e; --wait: #7a5900;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b65a94; --c4: #c79000; --c5: #3fa2dc;
  --c6: #6b5bb5; --c7: #777f88; --c8: #8c5a2b; --c9: #4b6a3a; --c10: #e39bb7; --c11: #2f4b7c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1d2126; --ink: #e6e9ed; --soft: #a2abb5; --rule: #3a424b;
    --good: #5fcf8f; --bad: #ff8a80; --wait: #e6bd55;
    --c0: #4ea8de; --c1: #f0894a; --c2: #3cc79a; --c3: #dd8fbf; --c4: #e5b93c; --c5: #8cd0f5;
    --c6: #a598e8; --c7: #9aa2ab; --c8: #c79a6b; --c9: #9dbf86; --c10: #f2bdd2; --c11: #8aa5dd;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 24px 16px 48px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 8px; }
p, dl { margin: 6px 0; max-width: 78ch; } .soft { color: var(--soft); }
.pictures { display: grid; gap: 16px; margin-top: 20px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
figure { margin: 0; padding: 12px; background: var(--card); border-radius: 8px;
  break-inside: avoid; }
figcaption { font-size: 13px; color: var(--soft); margin-bottom: 6px; }
figcaption b { display: block; font-size: 15px; color: var(--ink); }
figure > svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.grid { stroke: var(--rule); stroke-width: 1; } .axis { stroke: var(--soft); stroke-width: 1; }
.ideal { fill: none; stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; }
.line { fill: none; stroke-width: 2; stroke: var(--c); } .fill { fill: var(--c); }
.band { fill: var(--c); opacity: .2; stroke: none; } .mark { stroke: var(--ink); stroke-width: 2;
  }
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); } .s3 { --c: var(--c3); }
.s4 { --c: var(--c4); } .s5 { --c: var(--c5); } .s6 { --c: var(--c6); } .s7 { --c: var(--c7); }
.s8 { --c: var(--c8); } .s9 { --c: var(--c9); } .s10 { --c: var(--c10); }
.s11 { --c: var(--c11); }
.legend { list-style: none; margin: 6px 0 0; padding: 0; display: flex; flex-wrap: wrap;
  gap: 4px 14px;
  font-size: 13px; }
.legend svg { width: 12px; height: 12px; margin-right: 5px; vertical-align: -1px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
thead th { white-space: normal; }
th:first-child, th.word, td.word { text-align: left; } tbody th { color: var(--ink);
  font-weight: 600; }
.done { color: var(--good); } .failed, .impossible { color: var(--bad); }
.running, .queued, .not-queued, .unknown { color: var(--wait); } .differs { color: var(--bad);
  font-weight: 700; }
dl { font-size: 13px; color: var(--soft); display: grid; grid-template-columns: max-content 1fr;
  gap: 2px 12px;
  max-width: none; margin-top: 10px; }
dt { color: var(--ink); } dd { margin: 0; }
pre { background: var(--card); border-radius: 6px; padding: 8px 12px; margin: 4px 0 14px;
  font-size: 12.5px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 560px) { dl { grid-template-columns: 1fr; } dd { margin-bottom: 6px; } }
@media print {
  :root { --page: #fff; --card: #fff; --ink: #000; --soft: #444; --rule: #bbb; }
  body { max-width: none; padding: 0; font-size: 11px; }
  figure { border: 1px solid var(--rule); } .wide { overflow: visible; }
  .pictures { grid-template-columns: 1fr 1fr; }
  dl, figcaption, .legend { font-size: 9px; } figcaption b { font-size: 12px; }
  pre { font-size: 8px; } h2 { margin-top: 18px; }
  table { font-size: 8.5px; } th, td { padding: 2px 4px; white-space: normal; }
  h2 { break-after: avoid; } tr, pre { break-inside: avoid; }
}
)";

}  // namespace phalanx
