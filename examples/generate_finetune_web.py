"""Text continuation with a pretrained model, in the browser (Chinese and English).

    python examples/generate_finetune_web.py --base_model quickstart/pretrained
    python examples/generate_finetune_web.py --base_model checkpoints/13b --multi_gpu --allocate [10,10,10]

Then open http://127.0.0.1:7860. --server_name 0.0.0.0 accepts other machines; --share_gradio makes the page public.
"""

from command_line.fire_commands import run

import logging

from demo_pages import case_files, console, model_loading, text_generation, web_page


def main(
    base_model: str,
    multi_gpu: bool = False,
    allocate: list[int] | None = None,
    server_name: str = "127.0.0.1",
    server_port: int = 7860,
    share_gradio: bool = False,
    language: web_page.Language = "en",
    trust_remote_code: bool = False,
    **options: object,
) -> None:
    """Serve the page of a pretrained model.

    Args:
        base_model: a checkpoint folder, or OWNER/NAME or OWNER/NAME@REVISION of a hub, downloaded once.
        multi_gpu: spread the model over this machine's GPUs.
        allocate: GiB that each GPU may use, in order; needs multi_gpu.
        server_name: the address to listen on.
        server_port: the port to listen on.
        share_gradio: give the page a public address through Gradio's servers.
        language: language of the tab that is open at first, en or zh.
        trust_remote_code: execute the Python code in the folder of base_model.
        options: initial decoding settings of the page; see the options of generate_finetune.py.
    """
    release = case_files.read_cases("pretraining").decoding
    start = console.check_decoding(release | {"num_beams": 1}, options)  # one beam streams the text as it grows
    web_page.check_address(server_name, server_port)
    checkpoint = model_loading.load(
        base_model, multi_gpu=multi_gpu, allocate=allocate, trust_remote_code=trust_remote_code
    )
    page = web_page.build_page(checkpoint, False, start, language)
    web_page.serve(page, server_name, server_port, share_gradio)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    run(main, extra_option_types=text_generation.OPTIONS)
