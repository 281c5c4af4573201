"""What encoders there are beside our own runs: how each is named, read, pooled and licensed.

One entry of `KINDS` is one kind; `ijepa extract --encoder KIND:...` and `ijepa encoders` follow it.
"""

from typing import NamedTuple

from ijepa.config import Config
from ijepa.paper import TABLES


class Kind(NamedTuple):
    """What stands before the colon of an encoder's name.

    Attributes:
        takes: what stands behind the colon.
        home: the module whose `load` makes such an encoder.
        what: one line for people.
        pooling: how one vector comes of a layer, in a word.
        source: where released weights are.
        licence: of those weights, as far as anybody says it.
        licence_read: where it says so.
        method: as the paper's tables have it; None where the name says it, or nobody does.
        target: keys under which a file holds the encoder, the first that is there; if none is,
            the file itself is the weights.
        context: likewise the other of two encoders, for `--which context`.
        part: prefix of the encoder's weights, where others stand beside it.
        others: prefixes of weights that are not the encoder's.
    """

    takes: str
    home: str
    what: str
    pooling: str
    source: str
    licence: str
    licence_read: str
    method: str | None = None
    target: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    part: str = ""
    others: tuple[str, ...] = ()


TRANSFORMERS = "ijepa.encoders.vision_transformers"
RESNETS = "ijepa.encoders.resnets"

KINDS = {
    "timm": Kind(
        takes="NAME[@FILE]",
        home="ijepa.encoders.timm_models",
        what="any model of timm, with its pretrained weights or those of a file",
        pooling="as the model's",
        source="timm's hub cache; dl.fbaipublicfiles.com/ijepa for the four *_ijepa",
        licence="each its own; *_ijepa and *.mae CC BY-NC 4.0, *.dino Apache 2.0",
        licence_read="huggingface.co/timm/vit_huge_patch14_224.mae; huggingface.co/facebook/"
        "ijepa_vith14_1k, facebook/dino-vitb8",
    ),
    "hf": Kind(
        takes="FOLDER or NAME",
        home="ijepa.encoders.huggingface",
        what="I-JEPA, MAE, data2vec, MSN, DINOv2 or a plain ViT of transformers, on this machine",
        pooling="average (I-JEPA), class token",
        source="`hf download NAME`, such as facebook/ijepa_vith14_1k, facebook/vit-mae-huge",
        licence="each its own: facebook/ijepa_* CC BY-NC 4.0; vit-mae-*, data2vec-vision-*, "
        "vit-msn-*, dino-* Apache 2.0, though MAE and data2vec say CC BY-NC where they come from",
        licence_read="model cards of huggingface.co/facebook; see mae and data2vec",
    ),
    "mae": Kind(
        takes="FILE",
        home=TRANSFORMERS,
        what="facebookresearch/mae, with or without its decoder",
        pooling="class token",
        source="dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_huge.pth",
        licence="CC BY-NC 4.0",
        licence_read="github.com/facebookresearch/mae/blob/main/LICENSE",
        method="MAE",
        target=("model",),
        others=("decoder_", "mask_token"),
    ),
    "dino": Kind(
        takes="FILE",
        home=TRANSFORMERS,
        what="facebookresearch/dino, backbone alone or a full checkpoint (target: the teacher)",
        pooling="class token",
        source="dl.fbaipublicfiles.com/dino/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth",
        licence="Apache 2.0",
        licence_read="head of github.com/facebookresearch/dino/blob/main/vision_transformer.py; "
        "huggingface.co/facebook/dino-vitb8",
        method="DINO",
        target=("teacher",),
        context=("student",),
        part="backbone.",
        others=("head.",),
    ),
    "ibot": Kind(
        takes="FILE",
        home=TRANSFORMERS,
        what="bytedance/ibot, backbone alone or a full checkpoint (target: the teacher)",
        pooling="class token",
        source="the table of github.com/bytedance/ibot: checkpoint_teacher.pth",
        licence="Apache 2.0",
        licence_read="github.com/bytedance/ibot#license",
        method="iBOT",
        target=("teacher", "state_dict"),
        context=("student",),
        part="backbone.",
        others=("head.", "masked_embed"),
    ),
    "data2vec": Kind(
        takes="FILE",
        home=TRANSFORMERS,
        what="facebookresearch/data2vec_vision, pretrained, not fine-tuned",
        pooling="class token",
        source="dl.fbaipublicfiles.com/fairseq/data2vec/data2vec_vision/large_1600/"
        "checkpoint-799.pth",
        licence="CC BY-NC, parts of the code MIT",
        licence_read="github.com/facebookresearch/data2vec_vision/blob/main/beit/README.md",
        method="data2vec",
        target=("model", "module"),
        others=("lm_head.", "mask_token"),
    ),
    "cae": Kind(
        takes="FILE",
        home=TRANSFORMERS,
        what="lxtGH/CAE, pretrained: its encoder, without regressor and decoder",
        pooling="class token",
        source="the table of github.com/lxtGH/CAE (Google Drive)",
        licence="none is stated: ask its authors",
        licence_read="github.com/lxtGH/CAE, whose README names none",
        method="CAE",
        target=("model",),
        part="encoder.",
    ),
    "msn": Kind(
        takes="FILE",
        home=TRANSFORMERS,
        what="facebookresearch/msn: target encoder, or with --which context the other",
        pooling="class token",
        source="the table of github.com/facebookresearch/msn",
        licence="that of the repository, not seen by us; copies on the hub say Apache 2.0",
        licence_read="github.com/facebookresearch/msn; huggingface.co/facebook/vit-msn-base",
        method="MSN",
        target=("target_encoder",),
        context=("encoder",),
        others=("fc.", "pred."),
    ),
    "simclrv2": Kind(
        takes="FILE",
        home=RESNETS,
        what="google-research/simclr, converted by Separius/SimCLRv2-Pytorch, such as r152_2x_sk0",
        pooling="average of the map",
        source="gs://simclr-checkpoints/simclrv2/pretrained, through that converter",
        licence="code Apache 2.0, weights not told apart; the converter states none",
        licence_read="head of github.com/google-research/simclr/blob/master/resnet.py",
        method="SimCLR v2",
        target=("resnet",),
        others=("fc.",),
    ),
    "byol": Kind(
        takes="FILE",
        home=RESNETS,
        what="google-deepmind/deepmind-research byol, converted by ajtejankar/byol-convert",
        pooling="average of the map",
        source="storage.googleapis.com/deepmind-byol/checkpoints, through that converter",
        licence="code Apache 2.0, weights not told apart; the converter states none",
        licence_read="head of github.com/google-deepmind/deepmind-research/blob/master/byol/"
        "utils/schedules.py",
        method="BYOL",
        others=("fc.",),
    ),
}

OWN = {
    "RUN or FILE": "a run of `ijepa pretrain`, or one of its checkpoints (--which target, context)",
    "FILE.pth.tar": "a file as I-JEPA published them (CC BY-NC 4.0, says "
    "huggingface.co/facebook/ijepa_vith14_1k), known by what is in it",
    "published:[ARCH@]FILE": "the same, where its shapes do not tell the heads",
    "random:RUN": "the initial weights of that run",
    "random:ARCH[/PATCH][@PX]": "random weights, such as random:vit_small/16@224",
    "pixels": "the image itself, shrunk",
}


class PaperRow(Config):
    """A row of one of the paper's tables of methods."""

    table: int
    arch: str
    epochs: int | None
    values: dict[str, float]


class Entry(Config):
    """One line of the catalogue.

    Attributes:
        encoder: what `--encoder` takes.
        what: one line for people; likewise `pooling`, `source` and `licence` of the weights, and
            `licence_read`, where it is stated.
        method: as the paper's tables have it.
        paper: the rows of the paper that such an encoder stands for.
    """

    encoder: str
    what: str
    pooling: str
    source: str = ""
    licence: str = ""
    licence_read: str = ""
    method: str | None = None
    paper: tuple[PaperRow, ...] = ()


class Catalogue(Config):
    """All that `--encoder` takes."""

    encoders: tuple[Entry, ...]


def catalogue() -> Catalogue:
    """All that `--encoder` takes, our own first."""
    own = [
        Entry(
            encoder=name,
            what=what,
            pooling="none" if name == "pixels" else "average",
            method="I-JEPA" if name == "RUN or FILE" else None,
            paper=paper_rows("I-JEPA") if name == "RUN or FILE" else (),
        )
        for name, what in OWN.items()
    ]
    others = [
        Entry(
            encoder=f"{name}:{kind.takes}",
            what=kind.what,
            pooling=kind.pooling,
            source=kind.source,
            licence=kind.licence,
            licence_read=kind.licence_read,
            method=kind.method,
            paper=paper_rows(kind.method) if kind.method else (),
        )
        for name, kind in KINDS.items()
    ]
    return Catalogue(encoders=(*own, *others))


def paper_epochs(method: str | None, arch: str) -> int | None:
    """For how long the paper's encoder of that method and size was pretrained, if there is one."""
    found = {row.epochs for row in paper_rows(method or "") if row.arch == arch} - {None}
    return found.pop() if len(found) == 1 else None


def paper_rows(method: str) -> tuple[PaperRow, ...]:
    """Rows of the paper's tables that are about a method; ablations are left out."""
    return tuple(
        PaperRow(
            table=table.number,
            arch=row.arch,
            epochs=row.epochs,
            values={c.task: v for c, v in zip(table.columns, row.values, strict=True)},
        )
        for table in TABLES
        for row in table.rows
        if row.group and row.method == method
    )
