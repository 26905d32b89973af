"""Every node of the pack, in one list. Nodes are thin: sockets in, one core call, sockets out.

Imports stand at the top of a file. Only packages that are slow to import or not always there (av, PIL,
huggingface_hub, tokenizers, yaml, torchaudio) are imported where they are used; a test holds this.
"""

from comfy_api.v0_0_2 import ComfyExtension, io

from .audio import AceStepDetokenize, AceStepEncodeAudio, AceStepReference, AceStepTokenize
from .codes import AceStepCodesFromText, AceStepCodesText, AceStepLoadCodes, AceStepSaveCodes
from .decode import AceStepDecode
from .download import AceStepDownload
from .edit_codes import AceStepEditCodes
from .encode import AceStepEncode
from .example import AceStepExampleSong
from .host.border import guard
from .load import AceStepLoadModel, AceStepLoadPlanner, AceStepLoadTextEncoder, AceStepLoadVAE
from .lora import AceStepLoadLora
from .plan import AceStepFormat, AceStepIdea, AceStepPlan, AceStepUnderstand
from .region import AceStepRegion
from .sample import AceStepMorph, AceStepSample, AceStepSamplerOptions
from .save import AceStepSave
from .score import AceStepPickBest, AceStepScoreLyrics, AceStepScorePlan, AceStepWeakLines
from .song import AceStepSong, AceStepSongInfo
from .tasks import (
    AceStepComplete,
    AceStepCover,
    AceStepExtend,
    AceStepExtract,
    AceStepLego,
    AceStepRepaint,
    AceStepStitch,
)

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
    AceStepEditCodes,
    AceStepEncodeAudio,
    AceStepReference,
    AceStepTokenize,
    AceStepDetokenize,
    AceStepRegion,
    AceStepCover,
    AceStepRepaint,
    AceStepExtend,
    AceStepStitch,
    AceStepLego,
    AceStepExtract,
    AceStepComplete,
    AceStepEncode,
    AceStepSamplerOptions,
    AceStepSample,
    AceStepDecode,
    AceStepSave,
    AceStepLoadLora,
    AceStepScoreLyrics,
    AceStepScorePlan,
    AceStepPickBest,
    AceStepWeakLines,
    AceStepMorph,
]


for _node in NODES:
    guard(_node)


class AceStepExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
