"""Inputs of a model from its config: whatever its architecture, it runs on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hotswap.checks.inputs import default_inputs, made_inputs, problem_of_inputs
from hotswap.checks.processed import TEXTS
from hotswap.errors import HotswapError
from tests.support.architectures import ARCHITECTURES, DECODER, SMALL

EXPECTED = {
    "Llama": {"input_ids", "attention_mask"},
    "T5": {"input_ids", "attention_mask", "decoder_input_ids"},
    "Whisper": {"input_features", "decoder_input_ids"},
    "CLIP": {"input_ids", "attention_mask", "pixel_values"},
    "LLaVA": {"input_ids", "attention_mask", "pixel_values"},
    "wav2vec 2.0": {"input_values"},
    "ViT, classifier": {"pixel_values"},
}


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    return ARCHITECTURES[name][0]().eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_of_any_architecture_runs_on_its_default_inputs(name: str) -> None:
    model = model_of(name)
    inputs, again = default_inputs(model), default_inputs(model)
    with torch.no_grad():
        model(**inputs)
    assert inputs.keys() - {"use_cache"} == EXPECTED.get(name, inputs.keys() - {"use_cache"})
    tensors = {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)}
    assert {len(value) for value in tensors.values()} == {2}
    assert all(torch.equal(value, again[key]) for key, value in tensors.items())


def test_an_image_has_its_places_in_the_text() -> None:
    model = model_of("LLaVA")
    inputs = default_inputs(model)
    places = (inputs["input_ids"] == model.config.image_token_index).sum(1)
    assert places.tolist() == [4, 4]  # 16 pixels wide, in patches of 8


def test_a_saved_tokenizer_gives_real_text(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    words = sorted({word for text in TEXTS for word in text.lower().strip(".").split()})
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    )
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    ids = default_inputs(model_of("BERT, embeddings"), tmp_path)["input_ids"]
    assert ids[0, 0] == 2  # as the tokenizer begins
    assert ids.unique().numel() > 4


@pytest.mark.parametrize("name", ["ViT, classifier", "wav2vec 2.0"])
def test_a_saved_processor_makes_the_picture_or_the_tone(name: str, tmp_path: Path) -> None:
    import transformers

    if name.startswith("ViT"):
        pytest.importorskip("PIL")
        size = {"height": 16, "width": 16}
        processor = transformers.ViTImageProcessor(size=size, image_mean=[0.5] * 3)
    else:
        processor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000)
    processor.save_pretrained(tmp_path)
    found = default_inputs(model_of(name), tmp_path)
    (value,) = (found[key] for key in ("pixel_values", "input_values") if key in found)
    assert torch.equal(value[0], value[1])  # random numbers would differ
    assert tuple(value.shape) == ((2, 3, 16, 16) if name.startswith("ViT") else (2, 8000))


def test_a_processor_of_another_model_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "None"}')
    assert default_inputs(model_of("DINOv2"), tmp_path)["pixel_values"].shape == (2, 3, 16, 16)


def test_a_model_that_runs_on_none_says_what_it_raised() -> None:
    model = model_of("Llama")

    def forward(input_ids: Any) -> Any:
        raise ValueError("this model wants music")

    model.forward = forward
    with pytest.raises(HotswapError, match=r"does not run on inputs from its config: .*music"):
        default_inputs(model)


def test_a_model_of_unknown_inputs_is_one_sentence() -> None:
    model = model_of("Llama")
    model.forward = lambda series: series
    with pytest.raises(HotswapError, match="no inputs are known for LlamaForCausalLM"):
        default_inputs(model)


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ({}, "there are no tensors"),
        ({"pixels": torch.ones(1)}, "takes no 'pixels'; it takes input_ids"),
        ({"input_ids": torch.ones(1, 2)}, "has dtype torch.float32, expected whole numbers"),
        ({"input_ids": torch.tensor([[64]])}, "token 64, and the model's vocabulary has 64"),
        ({"input_ids": torch.tensor([[-1]])}, "the token -1, expected 0 or more"),
        ({"input_ids": torch.tensor([[63]])}, None),
    ],
)
def test_given_inputs_are_held_to_the_signature_and_the_vocabulary(
    inputs: dict[str, Any], problem: str | None
) -> None:
    found = problem_of_inputs(model_of("Llama"), inputs)
    assert (found is None) == (problem is None)
    assert problem is None or problem in str(found)


VISION = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
PATCHED = {**VISION, "num_hidden_layers": 1, "image_size": 16, "patch_size": 4}


def of(name: str, **options: Any) -> Any:
    """A model by the name of its class; what its config is made of."""
    import transformers

    torch.manual_seed(0)
    cls = getattr(transformers, name)
    return cls(cls.config_class(**options)).eval()


def qwen2_vl() -> Any:
    return of(
        "Qwen2VLForConditionalGeneration",
        text_config={
            **DECODER,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [1, 1, 2],
                "rope_theta": 1e4,
            },
        },
        vision_config={
            "embed_dim": 16,
            "hidden_size": 16,
            "depth": 1,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=60,
        video_token_id=61,
        vision_start_token_id=62,
        vision_end_token_id=63,
    )


def idefics3() -> Any:
    text = {**DECODER, "model_type": "llama", "pad_token_id": 0}
    return of(
        "Idefics3ForConditionalGeneration",
        text_config=text,
        vision_config=PATCHED,
        image_token_id=63,
        scale_factor=2,
        pad_token_id=0,
    )


def mistral3() -> Any:
    return of(
        "Mistral3ForConditionalGeneration",
        text_config={**DECODER, "model_type": "mistral", "head_dim": 8},
        vision_config={**PATCHED, "model_type": "pixtral", "head_dim": 8},
        image_token_index=63,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )


def trocr() -> Any:
    import transformers

    decoder = transformers.TrOCRConfig(
        d_model=16,
        vocab_size=64,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        cross_attention_hidden_size=16,
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**{**SMALL, "intermediate_size": 32}, image_size=16, patch_size=8),
        decoder,
    )
    config.decoder_start_token_id = config.pad_token_id = 0
    return transformers.VisionEncoderDecoderModel(config).eval()


def videomae() -> Any:
    image = {**SMALL, "intermediate_size": 32, "image_size": 16, "patch_size": 8}
    return of("VideoMAEForVideoClassification", **image, num_frames=4)


def wav2vec2_bert() -> Any:
    sizes = {**SMALL, "intermediate_size": 32, "vocab_size": 32}
    return of("Wav2Vec2BertForCTC", **sizes, feature_projection_input_dim=16)


def clap() -> Any:
    heard = {"spec_size": 32, "num_mel_bins": 16, "window_size": 4, "patch_size": 4}
    heard |= {"patch_stride": [4, 4], "hidden_size": 16, "patch_embeds_hidden_size": 8}
    heard |= {"depths": [1, 1], "num_attention_heads": [2, 2], "num_classes": 3}
    text = {**SMALL, "intermediate_size": 32, "vocab_size": 64, "projection_dim": 16}
    return of("ClapModel", text_config=text, audio_config={**heard, "projection_dim": 16})


def speecht5() -> Any:
    sides = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
    sizes = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in sides.items()}
    sizes |= {"hidden_size": 16, "vocab_size": 64, "num_mel_bins": 8}
    sizes |= {"speech_decoder_prenet_units": 16, "speech_decoder_postnet_units": 16}
    return of("SpeechT5ForTextToSpeech", **sizes)


def musicgen() -> Any:
    text = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1}
    sound = {"num_filters": 4, "hidden_size": 8, "codebook_dim": 8, "codebook_size": 32}
    music = {**SMALL, "vocab_size": 32, "ffn_dim": 32, "num_codebooks": 2, "pad_token_id": 0}
    return of(
        "MusicgenForConditionalGeneration",
        text_encoder={**text, "num_heads": 2, "vocab_size": 64},
        audio_encoder={**sound, "model_type": "encodec", "upsampling_ratios": [2]},
        decoder={**music, "bos_token_id": 1},
    )


@pytest.mark.parametrize(
    ("build", "name", "shape"),
    [(speecht5, "decoder_input_values", (2, 4, 8)), (musicgen, "decoder_input_ids", (4, 4))],
)
def test_a_decoder_of_sound_has_something_to_go_on_from(build: Any, name: str, shape: Any) -> None:
    given = made_inputs(build()).given
    assert given[name].shape == shape
    assert given["input_ids"].shape == (2, 8)


SEEING = {"Qwen2-VL": qwen2_vl, "Idefics3": idefics3, "Mistral 3": mistral3}


@pytest.mark.parametrize("build", [*SEEING.values(), trocr, videomae, wav2vec2_bert, clap])
def test_pictures_films_and_spectra_have_the_shape_that_the_config_asks_for(build: Any) -> None:
    made = made_inputs(build())
    assert made.given.keys() & {"pixel_values", "input_features"}
    assert made.origin.startswith("made from the config (random ")
    assert made.told.startswith("2 of ")


def test_text_alone_is_said_of_a_model_that_sees() -> None:
    model = model_of("LLaVA")
    model.get_image_features = None  # then it has no places for a picture
    assert made_inputs(model).told == (
        "2 of input_ids, attention_mask, made from the config (random tokens), without pixel_values"
    )


PICTURE = {"height": 16, "width": 16}


def words_and(*special: str, image: str) -> Any:
    """A tokenizer of the words of the texts, with the special tokens as the last of a vocabulary of 64."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for text in TEXTS for word in text.replace(".", "").split()})
    names = ["<pad>", "<unk>", "user", *words]
    vocabulary = dict(zip(names, range(len(names)), strict=True))
    vocabulary |= {name: 64 - len(special) + number for number, name in enumerate(special)}
    unknown = {"unk_token": "<unk>"}
    named = {"pad_token": "<pad>", **unknown}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, **unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    more = {"image_token": image}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=more, **named
    )


def llava_processor(**options: Any) -> Any:
    import transformers

    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    return transformers.LlavaProcessor(
        image_processor=kind(size={"shortest_edge": 16}, crop_size=PICTURE),
        tokenizer=words_and("<image>", image="<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        **options,
    )


def idefics3_processor() -> Any:
    import transformers

    kind = getattr(transformers, "Idefics3ImageProcessorPil", transformers.Idefics3ImageProcessor)
    edge = {"longest_edge": 16}
    special = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<image>")
    return transformers.Idefics3Processor(
        kind(size=edge, max_image_size=edge, do_image_splitting=False),
        words_and(*special, image="<image>"),
        image_seq_len=4,
    )


@pytest.mark.parametrize(
    ("build", "processor"),
    [(lambda: model_of("LLaVA"), llava_processor), (idefics3, idefics3_processor)],
    ids=["LLaVA", "Idefics3"],
)
def test_a_saved_processor_makes_a_picture_and_its_text(
    build: Any, processor: Any, tmp_path: Path
) -> None:
    pytest.importorskip("PIL")
    processor().save_pretrained(tmp_path)
    made = made_inputs(build(), tmp_path)
    assert made.origin == "made by the saved processor"
    ids = made.given["input_ids"]
    assert (ids == 63).sum(1).tolist() == [4, 4]
    assert torch.equal(made.given["pixel_values"][0], made.given["pixel_values"][1])


def test_a_chat_template_says_where_the_picture_is(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    template = (
        "{% for said in messages %}user {% for part in said['content'] %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    llava_processor(chat_template=template).save_pretrained(tmp_path)
    ids = made_inputs(model_of("LLaVA"), tmp_path).given["input_ids"]
    assert ids[0, 0] == 2  # "user"
    assert ids[0, 1:5].tolist() == [63] * 4


def test_a_tokenizer_in_the_place_of_a_processor_leaves_no_picture_out(tmp_path: Path) -> None:
    words_and("<image>", image="<image>").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "None"}')
    made = made_inputs(model_of("LLaVA"), tmp_path)
    assert "pixel_values" in made.given
    assert made.origin == "made by the saved tokenizer and from the config (random pixels)"
