/**
 * Shows the text a node returns in `ui.text` on the node itself: what auto became, warnings, a report. Where a node
 * fails, shows the sentence that says why, in red, until the next run.
 *
 * A widget exists only while there is text. It comes after all others and is in neither the saved workflow
 * nor the prompt, so `widgets_values` stays what the Python side declares.
 */
import { onNodeFailed, onNodeOutput } from "./host.js"

// Not names that the frontend knows: it would put its own widgets in place of ours.
const RESULT = { name: "result", type: "ACESTEP_TEXT" }
const FAILURE = {
  name: "failure",
  type: "ACESTEP_FAILURE",
  style: { color: "var(--error-text, #ff6b6b)", border: "1px solid var(--error-text, #ff6b6b)" },
}
// A long report scrolls; more would push the nodes below out of sight.
const MAX_HEIGHT_PX = 240
const MARGIN_PX = 10
const PADDING_PX = 6

const STYLE = {
  boxSizing: "border-box",
  maxHeight: `${MAX_HEIGHT_PX}px`,
  padding: `${PADDING_PX}px 8px`,
  borderRadius: "6px",
  overflowY: "auto",
  whiteSpace: "pre-wrap",
  overflowWrap: "anywhere",
  userSelect: "text",
  cursor: "text",
  font: "var(--comfy-textarea-font-size, 10px)/1.5 sans-serif",
  color: "var(--input-text, #ddd)",
  background: "var(--comfy-input-bg, #222)",
}

onNodeOutput("text", (node, output) => showText(node, RESULT, (output.text ?? []).join("\n")))
onNodeFailed((node, sentence) => {
  if (sentence) showText(node, RESULT, "") // of an earlier run
  showText(node, FAILURE, sentence)
})

function showText(node, kind, text) {
  const widget = node.widgets?.find(({ type }) => type === kind.type)
  if (text) (widget ?? addTextWidget(node, kind)).value = text
  else if (widget) node.removeWidget(widget)
  node.setDirtyCanvas(true, true)
}

function addTextWidget(node, { name, type, style }) {
  const box = document.createElement("div")
  const paragraph = box.appendChild(document.createElement("div"))
  Object.assign(box.style, STYLE, style)
  box.dataset.captureWheel = "true" // else Nodes 2.0 zooms the canvas where a long text should scroll

  let height = 0
  const boxHeight = () => {
    // Measured as 0 while hidden, for instance from far away: the node must not jump.
    if (paragraph.offsetHeight) height = Math.min(paragraph.offsetHeight + 2 * PADDING_PX, MAX_HEIGHT_PX)
    return height + 2 * MARGIN_PX
  }
  const widget = node.addDOMWidget(name, type, box, {
    getValue: () => paragraph.textContent,
    setValue: (text) => (paragraph.textContent = text),
    getMinHeight: boxHeight,
    getMaxHeight: boxHeight,
    margin: MARGIN_PX,
    serialize: false, // not in the prompt
  })
  widget.serialize = false // not in the workflow
  return widget
}
