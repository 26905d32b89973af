"""ACE-Step 1.5 for ComfyUI. Nothing is imported until ComfyUI asks for the nodes."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the extension that lists every node of the pack."""
    from .nodes import AceStepExtension

    return AceStepExtension()
