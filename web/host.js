/**
 * The one door between this folder and ComfyUI's frontend: no other module here imports `app` or `api`.
 *
 * Hands out hooks on the pack's nodes. Draws nothing and remembers nothing.
 */
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

// What the ids of all our nodes begin with; see nodes/__init__.py.
const OUR_NODES = "AceStep"

/** Call change(node) on every new node of one of our types, before it joins a graph. */
export function onNodeCreated(nodeType, change) {
  app.registerExtension({
    name: `acestep.created.${nodeType}`,
    nodeCreated(node) {
      if (node.comfyClass === nodeType) change(node)
    },
  })
}

/** Call change(declared) on what one of our types declares (/object_info), before the frontend builds nodes from it. */
export function onNodeDeclared(nodeType, change) {
  app.registerExtension({
    name: `acestep.declared.${nodeType}`,
    beforeRegisterNodeDef(_, declared) {
      if (declared.name === nodeType) change(declared)
    },
  })
}

/**
 * Call show(node, output) with a node's ui output whenever it may have changed: after the node ran, and for all of
 * the pack's nodes when ComfyUI drops or restores outputs (another workflow, another tab, a run from the history)
 * and when it builds nodes anew (undo). {} is no output. purpose is a name for logs.
 */
export function onNodeOutput(purpose, show) {
  app.registerExtension({
    name: `acestep.output.${purpose}`,

    nodeCreated(node) {
      if (!isOurs(node)) return
      const onExecuted = node.onExecuted
      node.onExecuted = function (output) {
        onExecuted?.call(this, output)
        show(this, output ?? {})
      }
    },

    loadedGraphNode(node) {
      if (isOurs(node)) show(node, app.nodeOutputs[locatorOf(node)] ?? {})
    },

    onNodeOutputsUpdated(outputs) {
      for (const node of allNodes().filter(isOurs)) show(node, outputs[locatorOf(node)] ?? {})
    },
  })
}

/**
 * Call show(node, sentence) when one of the pack's nodes fails, and show(node, "") on all of them when a run begins.
 *
 * A node in a subgraph is told by the ids on the way to it, "5:3".
 */
export function onNodeFailed(show) {
  api.addEventListener("execution_error", ({ detail }) => {
    const node = nodeAt(String(detail.node_id))
    // Another workflow may be in sight by now, with another node of this id.
    if (node?.comfyClass === detail.node_type && isOurs(node)) show(node, detail.exception_message.trim())
  })
  api.addEventListener("execution_start", () => {
    for (const node of allNodes().filter(isOurs)) show(node, "")
  })
}

/**
 * Draw wires and sockets of some types in these colours (type -> CSS colour), in both renderers and every palette.
 *
 * A palette gives every type that it does not name no colour at all; these are there again whatever it writes.
 */
export function colourWires(colours) {
  const keep = (table) => {
    for (const [type, colour] of Object.entries(colours)) {
      Object.defineProperty(table, type, { get: () => colour, set() {}, enumerable: true, configurable: true })
    }
  }
  app.registerExtension({
    name: "acestep.wires",
    setup() {
      keep(app.canvas.default_connection_color_byType) // sockets of classic
      keep(window.LGraphCanvas.link_type_colors) // wires
      const rules = Object.entries(colours).map(([type, colour]) => `--color-datatype-${type}: ${colour};`)
      document.head.appendChild(document.createElement("style")).textContent = `:root { ${rules.join(" ")} }` // Nodes 2.0
    },
  })
}

/** Return where the page gets a file that a node saved, an entry of its ui output. */
export function urlOf({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
}

function isOurs(node) {
  return node.comfyClass?.startsWith(OUR_NODES)
}

function allNodes() {
  return [app.rootGraph, ...app.rootGraph.subgraphs.values()].flatMap(({ nodes }) => nodes)
}

/** Return the node at the end of a path of ids from the root, such as "5:3"; nothing where there is none. */
function nodeAt(path) {
  const ids = path.split(":")
  const graph = ids.slice(0, -1).reduce((inside, id) => inside?.getNodeById(id)?.subgraph, app.rootGraph)
  return graph?.getNodeById(ids.at(-1))
}

/** Return the key of a node in the frontend's map of outputs: its id, after its subgraph's if it is in one. */
function locatorOf(node) {
  return node.graph === app.rootGraph ? `${node.id}` : `${node.graph.id}:${node.id}`
}
