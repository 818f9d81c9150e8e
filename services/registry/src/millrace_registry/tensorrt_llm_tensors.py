"""Tensors of TensorRT-LLM's models for Triton, as far as generating text from text needs them.

From the templates in NVIDIA/TensorRT-LLM, triton_backend/all_models/inflight_batcher_llm, at
commit 0c8de69a1ca6213eebb20a51873890ff128666c2; those of encoders, images, draft models, beams
kept in caches and disaggregated serving are left out, all of which are optional.

A tensor is its type and its dimensions, then its marks: "o" it may be left out, "r" a batch of
scalars (reshaped to nothing), "g" of different lengths within a batch.
"""

Tensor = tuple[str, tuple[int, ...], str]

ONE, LIST, PAIRS = (1,), (-1,), (2, -1)

PREPROCESSING_INPUTS: dict[str, Tensor] = {
    "QUERY": ("STRING", ONE, ""),
    "REQUEST_OUTPUT_LEN": ("INT32", ONE, ""),
    "BAD_WORDS_DICT": ("STRING", LIST, "o"),
    "STOP_WORDS_DICT": ("STRING", LIST, "o"),
    "EMBEDDING_BIAS_WORDS": ("STRING", LIST, "o"),
    "EMBEDDING_BIAS_WEIGHTS": ("FP32", LIST, "o"),
    "END_ID": ("INT32", ONE, "o"),
    "PAD_ID": ("INT32", ONE, "o"),
}
PREPROCESSING_OUTPUTS: dict[str, Tensor] = {
    "INPUT_ID": ("INT32", LIST, ""),
    "REQUEST_INPUT_LEN": ("INT32", ONE, ""),
    "DECODER_INPUT_ID": ("INT32", LIST, ""),
    "REQUEST_DECODER_INPUT_LEN": ("INT32", ONE, ""),
    "BAD_WORDS_IDS": ("INT32", PAIRS, ""),
    "STOP_WORDS_IDS": ("INT32", PAIRS, ""),
    "EMBEDDING_BIAS": ("FP32", LIST, ""),
    "REQUEST_OUTPUT_LEN": ("INT32", LIST, ""),
    "OUT_END_ID": ("INT32", ONE, ""),
    "OUT_PAD_ID": ("INT32", ONE, ""),
    "OUT_PROMPT_TABLE_EXTRA_IDS": ("UINT64", LIST, ""),
}
ENGINE_INPUTS: dict[str, Tensor] = {
    "input_ids": ("INT32", LIST, "og"),
    "input_lengths": ("INT32", ONE, "r"),
    "request_output_len": ("INT32", ONE, "r"),
    "num_return_sequences": ("INT32", ONE, "or"),
    "end_id": ("INT32", ONE, "or"),
    "pad_id": ("INT32", ONE, "or"),
    "stop_words_list": ("INT32", PAIRS, "og"),
    "bad_words_list": ("INT32", PAIRS, "og"),
    "embedding_bias": ("FP32", LIST, "og"),
    "beam_width": ("INT32", ONE, "or"),
    "temperature": ("FP32", ONE, "or"),
    "runtime_top_k": ("INT32", ONE, "or"),
    "runtime_top_p": ("FP32", ONE, "or"),
    "len_penalty": ("FP32", ONE, "or"),
    "repetition_penalty": ("FP32", ONE, "or"),
    "min_tokens": ("INT32", ONE, "or"),
    "presence_penalty": ("FP32", ONE, "or"),
    "frequency_penalty": ("FP32", ONE, "or"),
    "seed": ("UINT64", ONE, "or"),
    "return_log_probs": ("BOOL", ONE, "or"),
    "return_num_input_tokens": ("BOOL", ONE, "or"),
    "return_num_output_tokens": ("BOOL", ONE, "or"),
    "exclude_input_in_output": ("BOOL", ONE, "or"),
    "stop": ("BOOL", ONE, "or"),
    "streaming": ("BOOL", ONE, "or"),
    "lora_task_id": ("UINT64", ONE, "or"),
    "lora_weights": ("FP16", (-1, -1), "og"),
    "lora_config": ("INT32", (-1, 3), "og"),
    "guided_decoding_guide_type": ("STRING", ONE, "og"),
    "guided_decoding_guide": ("STRING", ONE, "og"),
}
ENGINE_OUTPUTS: dict[str, Tensor] = {
    "output_ids": ("INT32", (-1, -1), ""),
    "sequence_length": ("INT32", LIST, ""),
    "cum_log_probs": ("FP32", LIST, ""),
    "output_log_probs": ("FP32", (-1, -1), ""),
    "batch_index": ("INT32", ONE, ""),
    "sequence_index": ("INT32", ONE, ""),
    "num_input_tokens": ("INT32", ONE, ""),
    "num_output_tokens": ("INT32", ONE, ""),
}
POSTPROCESSING_INPUTS: dict[str, Tensor] = {
    "TOKENS_BATCH": ("INT32", (-1, -1), ""),
    "SEQUENCE_LENGTH": ("INT32", LIST, ""),
}
POSTPROCESSING_OUTPUTS: dict[str, Tensor] = {"OUTPUT": ("STRING", LIST, "")}

ENSEMBLE_INPUTS: dict[str, Tensor] = {
    "text_input": ("STRING", ONE, ""),
    "max_tokens": ("INT32", ONE, ""),
    "num_return_sequences": ("INT32", ONE, "o"),
    "bad_words": ("STRING", LIST, "o"),
    "stop_words": ("STRING", LIST, "o"),
    "exclude_input_in_output": ("BOOL", ONE, "o"),
    "end_id": ("INT32", ONE, "o"),
    "pad_id": ("INT32", ONE, "o"),
    "top_k": ("INT32", ONE, "o"),
    "top_p": ("FP32", ONE, "o"),
    "temperature": ("FP32", ONE, "o"),
    "length_penalty": ("FP32", ONE, "o"),
    "repetition_penalty": ("FP32", ONE, "o"),
    "min_tokens": ("INT32", ONE, "o"),
    "presence_penalty": ("FP32", ONE, "o"),
    "frequency_penalty": ("FP32", ONE, "o"),
    "seed": ("UINT64", ONE, "o"),
    "return_log_probs": ("BOOL", ONE, "o"),
    "return_num_input_tokens": ("BOOL", ONE, "o"),
    "return_num_output_tokens": ("BOOL", ONE, "o"),
    "beam_width": ("INT32", ONE, "o"),
    "stream": ("BOOL", ONE, "o"),
    "embedding_bias_words": ("STRING", LIST, "o"),
    "embedding_bias_weights": ("FP32", LIST, "o"),
    "lora_task_id": ("UINT64", ONE, "o"),
    "lora_weights": ("FP16", (-1, -1), "og"),
    "lora_config": ("INT32", (-1, 3), "og"),
    "guided_decoding_guide_type": ("STRING", ONE, "og"),
    "guided_decoding_guide": ("STRING", ONE, "og"),
}
ENSEMBLE_OUTPUTS: dict[str, Tensor] = {
    "text_output": ("STRING", LIST, ""),
    **{
        name: ENGINE_OUTPUTS[name]
        for name in ENGINE_OUTPUTS
        if name not in ("output_ids", "sequence_length")
    },
}

# The ensemble's steps: a step's own tensor -> the ensemble's, or "_…" between two steps.
PREPROCESSING_INPUT_MAP = {
    "QUERY": "text_input",
    "REQUEST_OUTPUT_LEN": "max_tokens",
    "BAD_WORDS_DICT": "bad_words",
    "STOP_WORDS_DICT": "stop_words",
    "EMBEDDING_BIAS_WORDS": "embedding_bias_words",
    "EMBEDDING_BIAS_WEIGHTS": "embedding_bias_weights",
    "END_ID": "end_id",
    "PAD_ID": "pad_id",
}
PREPROCESSING_OUTPUT_MAP = {
    "REQUEST_INPUT_LEN": "_REQUEST_INPUT_LEN",
    "INPUT_ID": "_INPUT_ID",
    "REQUEST_OUTPUT_LEN": "_REQUEST_OUTPUT_LEN",
    "STOP_WORDS_IDS": "_STOP_WORDS_IDS",
    "BAD_WORDS_IDS": "_BAD_WORDS_IDS",
    "EMBEDDING_BIAS": "_EMBEDDING_BIAS",
    "OUT_END_ID": "_PREPROCESSOR_END_ID",
    "OUT_PAD_ID": "_PREPROCESSOR_PAD_ID",
}
ENGINE_INPUT_MAP = {
    **{name: name for name in ENGINE_INPUTS if name in ENSEMBLE_INPUTS},
    "input_ids": "_INPUT_ID",
    "input_lengths": "_REQUEST_INPUT_LEN",
    "request_output_len": "_REQUEST_OUTPUT_LEN",
    "end_id": "_PREPROCESSOR_END_ID",
    "pad_id": "_PREPROCESSOR_PAD_ID",
    "embedding_bias": "_EMBEDDING_BIAS",
    "stop_words_list": "_STOP_WORDS_IDS",
    "bad_words_list": "_BAD_WORDS_IDS",
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "len_penalty": "length_penalty",
    "streaming": "stream",
}
ENGINE_OUTPUT_MAP = {
    "output_ids": "_TOKENS_BATCH",
    "sequence_length": "_SEQUENCE_LENGTH",
    **{name: name for name in ENGINE_OUTPUTS if name in ENSEMBLE_OUTPUTS},
}
POSTPROCESSING_INPUT_MAP = {
    "TOKENS_BATCH": "_TOKENS_BATCH",
    "SEQUENCE_LENGTH": "_SEQUENCE_LENGTH",
}
POSTPROCESSING_OUTPUT_MAP = {"OUTPUT": "text_output"}
