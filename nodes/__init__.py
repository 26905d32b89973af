"""Every node of the pack, in one list. The nodes are thin: sockets in, one core call, sockets out."""

from comfy_api.v0_0_2 import ComfyExtension, io

from .codes import AceStepCodesFromText, AceStepCodesText, AceStepLoadCodes, AceStepSaveCodes
from .decode import AceStepDecode
from .download import AceStepDownload
from .encode import AceStepEncode
from .example import AceStepExampleSong
from .load import AceStepLoadModel, AceStepLoadPlanner, AceStepLoadTextEncoder, AceStepLoadVAE
from .plan import AceStepFormat, AceStepIdea, AceStepPlan, AceStepUnderstand
from .sample import AceStepSample, AceStepSamplerOptions
from .song import AceStepSong, AceStepSongInfo

NODES: list[type[io.ComfyNode]] = [
    AceStepLoadModel,
    AceStepLoadTextEncoder,
    AceStepLoadPlanner,
    AceStepLoadVAE,
    AceStepDownload,
    AceStepSong,
    AceStepSongInfo,
    AceStepExampleSong,
    AceStepPlan,
    AceStepIdea,
    AceStepFormat,
    AceStepUnderstand,
    AceStepCodesText,
    AceStepCodesFromText,
    AceStepSaveCodes,
    AceStepLoadCodes,
    AceStepEncode,
    AceStepSamplerOptions,
    AceStepSample,
    AceStepDecode,
]


class AceStepExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
