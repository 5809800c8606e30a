"""Generate instruction rows with a model behind an OpenAI-compatible server.

Read generation_run.py first (requests and their seeds), then a method: self_instruction.py, instruction_evolution.py,
graph_questions.py or row_translation.py. source_rows.py reads published formats, rouge_pool.py compares texts.
"""
