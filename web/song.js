/**
 * Gives the lyrics of a song node the room its caption does not need; ComfyUI would split the height evenly.
 */
import { onNodeCreated } from "./host.js"

const CAPTION_ROWS = 4
const LYRICS_ROWS = 24

onNodeCreated("AceStepSong", (node) => {
  const caption = node.widgets.find(({ name }) => name === "caption")
  const lyrics = node.widgets.find(({ name }) => name === "lyrics")
  // Nodes 2.0 hands `rows` on to its text area; the classic canvas asks for heights.
  Object.assign(caption.options, {
    rows: CAPTION_ROWS,
    getMinHeight: () => heightOf(CAPTION_ROWS),
    getMaxHeight: () => heightOf(CAPTION_ROWS),
  })
  Object.assign(lyrics.options, { rows: LYRICS_ROWS, getMinHeight: () => heightOf(LYRICS_ROWS) })
})

/** Return the height in pixels that rows of text need on the classic canvas, at its usual font size. */
function heightOf(rows) {
  const row = 12
  const margins = 24
  return rows * row + margins
}
