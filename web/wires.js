/**
 * Gives each kind of our wires a colour of its own; ComfyUI would draw all of them alike.
 *
 * Middle tones, to be told apart on dark and on light canvases.
 */
import { colourWires } from "./host.js"

colourWires({
  ACESTEP_TEXT_ENCODER: "#d9a520",
  ACESTEP_PLANNER: "#c77dff",
  ACESTEP_SONG: "#f28c38",
  ACESTEP_CODES: "#2fbf9f",
  ACESTEP_TASK: "#e0567a",
  ACESTEP_REFERENCE: "#5c9ded",
  ACESTEP_SCORE: "#8fbf3f",
  ACESTEP_OPTIONS: "#a58a6f",
})
