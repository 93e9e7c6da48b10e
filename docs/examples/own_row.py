"""A plugin file for a model type that tailorlib doesn't know: what is left out is as in Llama."""

from tailorlib.models.architecture import Architecture, register_architecture

register_architecture(
    Architecture(
        "my_model",  # model_type in its config.json
        layers="model.layers",
        embeddings=("model.embed_tokens",),
        norm="model.norm",
        head="lm_head",
        per_layer=("layer_types",),
    )
)
