"""Instructions and extraction with a tuned model, in the browser (Chinese and English).

    python examples/generate_lora_web.py --base_model quickstart/merged
    python examples/generate_lora_web.py --base_model checkpoints/13b --lora_weights checkpoints/lora --load_8bit

Then open http://127.0.0.1:7860. --server_name 0.0.0.0 accepts other machines; --share_gradio makes the page public.
"""

from command_line.fire_commands import run

import logging

from demo_pages import console, model_loading, text_generation, web_page


def main(
    base_model: str,
    lora_weights: str = "",
    template_path: str = "",
    multi_gpu: bool = False,
    allocate: list[int] | None = None,
    load_8bit: bool = False,
    server_name: str = "127.0.0.1",
    server_port: int = 7860,
    share_gradio: bool = False,
    language: web_page.Language = "en",
    trust_remote_code: bool = False,
    **options: object,
) -> None:
    """Serve the page of an instruction-tuned model.

    Args:
        base_model: a checkpoint folder, or OWNER/NAME or OWNER/NAME@REVISION of a hub, downloaded once; an
            instruction-tuned one if lora_weights is not given.
        lora_weights: a LoRA adapter of base_model, given in the same way.
        template_path: chat template to use instead of the folder's: a Jinja file, or an alpaca prompt file (.json).
        multi_gpu: spread the model over this machine's GPUs.
        allocate: GiB that each GPU may use, in order; needs multi_gpu.
        load_8bit: load the weights in 8 bits; needs an NVIDIA GPU and bitsandbytes.
        server_name: the address to listen on.
        server_port: the port to listen on.
        share_gradio: give the page a public address through Gradio's servers.
        language: language of the tab that is open at first, en or zh.
        trust_remote_code: execute the Python code in the folders of base_model and lora_weights.
        options: initial decoding settings of the page; see the options of generate_lora.py.
    """
    start = console.check_decoding({}, options)
    web_page.check_address(server_name, server_port)
    checkpoint = model_loading.load(
        base_model, lora_weights, load_8bit, multi_gpu, allocate, template_path, trust_remote_code
    )
    console.warn_of_missing_files(checkpoint, lora_weights or base_model, extracts=True)
    page = web_page.build_page(checkpoint, True, start, language)
    web_page.serve(page, server_name, server_port, share_gradio)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    run(main, extra_option_types=text_generation.OPTIONS)
