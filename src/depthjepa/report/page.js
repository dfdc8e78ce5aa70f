// What a page of a report can do beside being read: save a picture, fold its sections, and print all of them.
"use strict";
{
  const sections = [...document.querySelectorAll("section > details")];
  const slug = document.title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60) || "report";

  // A page without JavaScript has no buttons that do nothing.
  document.querySelectorAll("figure").forEach((figure, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Save picture";
    button.addEventListener("click", () => {
      const picture = figure.querySelector("img");
      const bytes = Uint8Array.from(atob(picture.src.split(",")[1]), (letter) => letter.charCodeAt(0));
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
      link.download = `${slug}-${number + 1}.png`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    figure.querySelector("figcaption").prepend(button);
  });

  const folding = document.querySelector(".folding");
  if (folding && sections.length > 1) {
    const button = document.createElement("button");
    button.type = "button";
    const name = () => { button.textContent = sections.some((each) => each.open) ? "Fold all" : "Unfold all"; };
    button.addEventListener("click", () => {
      const open = !sections.some((each) => each.open);
      for (const each of sections) each.open = open;
    });
    for (const each of sections) each.addEventListener("toggle", name);
    name();
    folding.append(button);
  }

  // Paper cannot be unfolded.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const each of folded) each.open = true;
  });
  addEventListener("afterprint", () => { for (const each of folded) each.open = false; });
}
