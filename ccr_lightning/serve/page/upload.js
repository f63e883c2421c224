// A picture of the visitor: chosen, dropped or pasted.

const file = document.getElementById("file");
const drop = document.getElementById("drop");

export function onPicture(use) {
  document.getElementById("choose").addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    if (file.files.length) use(file.files[0]);
    file.value = ""; // so that the same can be chosen again
  });
  document.addEventListener("paste", (event) => {
    const [pasted] = event.clipboardData?.files ?? [];
    const isText = event.clipboardData?.types.includes("text/plain") && document.activeElement?.matches("input");
    if (!pasted || isText) return; // office programs copy text with a picture of it
    event.preventDefault();
    use(pasted);
  });
  const isFile = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    drop.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.hidden = true;
  });
  document.addEventListener("drop", (event) => {
    drop.hidden = true;
    if (!isFile(event)) return;
    event.preventDefault();
    if (event.dataTransfer.files.length) use(event.dataTransfer.files[0]);
  });
}
