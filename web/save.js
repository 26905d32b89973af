/**
 * Gives the save node the frontend's own audio player, and a choice of what it plays where a run saved several takes.
 *
 * The choice exists only while there is one. Like the player it comes after all widgets that the Python side declares
 * and is in neither the saved workflow nor the prompt.
 */
import { onNodeDeclared, onNodeOutput, urlOf } from "./host.js"

const NODE = "AceStepSave"
// What core's own save nodes call their player; the frontend fills in the first file by this name.
const PLAYER = "audioUI"
const CHOICE = "take"

onNodeDeclared(NODE, ({ input }) => {
  // Not in input_order, so it comes last; socketless, as nothing can be connected to a player.
  input.required[PLAYER] = ["AUDIO_UI", { socketless: true }]
})

onNodeOutput("takes", (node, output) => {
  if (node.comfyClass === NODE) offer(node, output.audio ?? [])
})

function offer(node, files) {
  const choice = node.widgets.find(({ name }) => name === CHOICE)
  const names = files.map(nameOf)
  if (names.length < 2) {
    if (choice) node.removeWidget(choice)
    return
  }
  const widget = choice ?? addChoice(node, names)
  // In place: Nodes 2.0 does not see another list, and would offer the files of an earlier run.
  widget.options.values.splice(0, Infinity, ...names)
  widget.callback = (name) => play(node, files[names.indexOf(name)])
  if (!names.includes(widget.value)) widget.value = names[0]
  widget.callback(widget.value) // core has put its first file into the player
}

/** Return what tells a take from its neighbours: "take 2, seed 8, drums", as far as its file name says it. */
function nameOf({ filename }, index) {
  const [, seed, track] = filename.match(/_seed(\d+)(?:_([^.]*))?\.[^.]*$/) ?? []
  return [`take ${index + 1}`, seed && `seed ${seed}`, track?.replaceAll("_", " ")].filter(Boolean).join(", ")
}

function addChoice(node, names) {
  const choice = node.addWidget("combo", CHOICE, names[0], () => {}, { values: [...names], serialize: false })
  choice.serialize = false // not in the workflow; in the options: not in the prompt
  choice.tooltip = "Which take the player plays."
  return choice
}

function play(node, file) {
  if (!file) return // a choice of an earlier run
  const player = node.widgets.find(({ name }) => name === PLAYER)
  player.element.src = player.value = urlOf(file)
}
