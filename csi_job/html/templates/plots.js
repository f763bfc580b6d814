// Draw every figure of the page from the JSON beside it, and fit it again where the paper changes its width.
"use strict";
const plots = [...document.querySelectorAll("[data-plot]")];
for (const plot of plots) {
  const figure = JSON.parse(document.getElementById(plot.dataset.plot).textContent);
  Plotly.newPlot(plot, figure.data, figure.layout, {
    responsive: true,
    displaylogo: false,
    scrollZoom: false,
    modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
    toImageButtonOptions: { filename: plot.dataset.title, scale: 2 },
  });
}
const fit = () => plots.forEach((plot) => Plotly.Plots.resize(plot));
window.addEventListener("beforeprint", fit);
window.addEventListener("afterprint", fit);
