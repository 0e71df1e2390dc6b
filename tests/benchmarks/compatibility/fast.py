"""The rows of `make test`: one for each way through the code, none that compiles; under a minute in all."""

TUNERS = [
    "DoRA",
    "AdaLoRA",
    "BOFT",
    "IA3",
    "LoHa",
    "LoKr",
    "MiSS",
    "OFT",
    "VeRA",
    "HRA",
    "OSF",
    "RoAd",
    "SHiRA",
    "DeLoRA",
]
_GROUPS = {
    "PEFT tuners": """
        IA3 as feed-forward on kv_proj
        AdaLoRA on lm_head
        LN tuning of all norms
        Trainable tokens with a tied head
        prompt tuning
        prefix tuning
        CPT
        X-LoRA
        mixed model of LoRA, LoHa and LoKr
    """,
    "LoRA": """
        on kv_proj and routers
        with lora_bias
        with rank_pattern and alpha_pattern
        on embed_tokens and lm_head with ensure_weight_tying
        with modules_to_save=router.layer
        with modules_to_save=lm_head and embed_tokens
        DoRA on kv_proj, on 4-bit experts
        KaSA
        block-diagonal
        init_lora_weights=pissa
        EVA
        LoRA-GA
        aLoRA
        QA-LoRA
        VeLoRA
        Arrow routing of adapters
        lora_dropout on kv_proj and routers
        layer_replication
        on all experts, kv_proj and routers
        on all experts, kv_proj and routers, on 4-bit experts
        on kv_proj by target_parameters
        on experts, with padding and position_ids
        of a classifier with its head
    """,
    "Operations on adapters": """
        set_adapter
        several active adapters
        add_weighted_adapter, svd
        delete_adapter
        disable_adapter
        merge_adapter, disable_adapter and unmerge_adapter, LoRA on experts
        merge_adapter, disable_adapter and unmerge_adapter, DoRA
        merge_adapter under disable_adapter
        merge_and_unload of two adapters by name
        hotswap_adapter
        prepare_model_for_compiled_hotswap on linear layers
        writes to adapter tensors through .data
        writes to zero adapter tensors through .data
        scaling changed by set_scale, scale_layer and unscale_layer
        save_pretrained and from_pretrained of two adapters
        low_cpu_mem_usage
        adapter loaded under inference_mode
        second adapter loaded under inference_mode, used outside
        mixed batch by adapter_names on kv_proj
        mixed batch by adapter_names on routers
        mixed batch by adapter_names on experts
        load_state_dict with assign=True
        bf16 with autocast_adapter_dtype=True
        prepare_model_for_kbit_training with checkpointing
        deepcopy of an adapted model
        optimizer steps between few-token passes
    """,
    "Trainer": """
        LoRA, fp32
        gradient accumulation
        gradient checkpointing
        bf16=True: losses
        moving average written through .data
    """,
    "TRL": """
        SFT, packing, bfd
        SFT, TRL's own precision and checkpointing: losses
        DPO, adapters off as the reference
    """,
    "Generation": """
        greedy, left padding
        sampling, top_k, top_p, min_p, typical_p, temperature
        beam search with scores
        prompt lookup
        assistant_early_exit
        hidden states
        cache_implementation=static, LoRA
        assistant_model
        streamers
        inputs_embeds
        a cache continued, cropped, and used again
        StaticCache in a forward pass
    """,
    "Models": """
        forward and backward of all weights, training mode
        hidden states and attentions
        gradients of hidden states and attentions by retain_grad
        attn_implementation=eager, padded
        an attention function of one's own, registered
        4-D mask
        packed examples by position_ids
        labels with ignored positions, num_items_in_batch, shift_labels
        gradient checkpointing: gradients of all weights
        resize_token_embeddings
        set_input_embeddings and set_output_embeddings
        names and shapes of state_dict, parameters and buffers
        deepcopy
        class.from_pretrained(None, config=, state_dict=)
        RoPE linear by configuration
        RoPE dynamic by keyword
        RoPE llama3 by config.json
        AutoModelForSequenceClassification, single label
        AutoModelForSequenceClassification, several labels
        AutoModel, on 4-bit experts
        pipeline text-generation
        skip_logits: the loss without the logits
    """,
    "Execution": """
        autocast to bfloat16
        autocast to bfloat16, on 4-bit experts
        autocast: router logits stay in fp32
        autocast: router logits stay in fp32, on 4-bit experts
        autocast: few tokens, then the same model in fp32
        inference_mode
        gradients of gradients
        torch.func.functional_call and grad
        torch.autograd.functional.jvp by forward mode
        hooks on kv_proj
        hooks on feed-forward router
        hooks on feed-forward router's layer
        hooks on feed-forward experts' input_linear
        hooks on feed-forward layer
        hooks on lm_head
        a hook that changes the output of kv_proj
        a hook that changes the output of attention router's layer
        a hook that changes the output of decoder layer
        a hook that changes the output of lm_head
        a module replaced by a subclass of Linear: feed-forward router's layer
        a bias added to kv_proj and to a router
        parametrizations: weight norm on kv_proj
        torch.ao dynamic quantization of linear layers
        two threads at once
        one token, and a text longer than max_position_embeddings
    """,
}
FAST = (
    *(f"PEFT tuners: {name} on all-linear" for name in TUNERS),
    *(f"{group}: {name.strip()}" for group, names in _GROUPS.items() for name in names.strip().splitlines()),
)
