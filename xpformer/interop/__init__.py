"""Models in other people's files: Hugging Face directories, vit_jax ``.npz``, timm's names.

::

    config.json        ──> families: which class, which options, what cannot be    (hf_vit, hf_gpt)
    *.safetensors      ──> tensor_files: names and shapes, numbers when asked for
    both               ──> layouts: a table of names and layouts, our arrays <-> theirs
    everything else    ──> assets: class names, preprocessor, tokenizer

:mod:`xpformer.interop.pretrained` brings them together.  Nothing here needs torch or transformers, and nothing that is
read can run code.
"""
