/**
 * Shows the text a node returns in `ui.text` on the node itself: what auto became, warnings, a report.
 *
 * The widget exists only while there is text. It comes after all others and is in neither the saved workflow
 * nor the prompt, so `widgets_values` stays what the Python side declares.
 */
import { onNodeOutput } from "./host.js"

// Not a name the frontend knows: it would put its own widget in place of ours.
const WIDGET_TYPE = "ACESTEP_TEXT"
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

onNodeOutput("text", (node, output) => showText(node, (output.text ?? []).join("\n")))

function showText(node, text) {
  const widget = node.widgets?.find(({ type }) => type === WIDGET_TYPE)
  if (text) (widget ?? addTextWidget(node)).value = text
  else if (widget) node.removeWidget(widget)
  node.setDirtyCanvas(true, true)
}

function addTextWidget(node) {
  const box = document.createElement("div")
  const paragraph = box.appendChild(document.createElement("div"))
  Object.assign(box.style, STYLE)
  box.dataset.captureWheel = "true" // else Nodes 2.0 zooms the canvas where a long text should scroll

  let height = 0
  const boxHeight = () => {
    // Measured as 0 while hidden, for instance from far away: the node must not jump.
    if (paragraph.offsetHeight) height = Math.min(paragraph.offsetHeight + 2 * PADDING_PX, MAX_HEIGHT_PX)
    return height + 2 * MARGIN_PX
  }
  const widget = node.addDOMWidget("result", WIDGET_TYPE, box, {
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
