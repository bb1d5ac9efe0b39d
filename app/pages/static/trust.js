// Before all other scripts: HTML comes from our own server alone, which has cleaned it. Scripts are never made of text.
if (window.trustedTypes) {
  trustedTypes.createPolicy("default", { createHTML: (html) => html });
}
