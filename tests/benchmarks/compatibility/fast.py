"""The rows of `make test`: one for each way through the code, none that compiles; under a minute in all."""

TUNERS = ["DoRA", "IA3", "LoHa", "OFT", "VeRA", "VB-LoRA"]
_GROUPS = {
    "PEFT tuners": """
        IA3 as feed-forward on kv_proj
        LN tuning of all norms
        Trainable tokens with a tied head
        prompt tuning
        prefix tuning
        mixed model of LoRA, LoHa and LoKr
    """,
    "LoRA": """
        on kv_proj and routers
        with lora_bias
        with rank_pattern and alpha_pattern
        with modules_to_save=router.layer
        DoRA on kv_proj, on 4-bit experts
        block-diagonal
        init_lora_weights=pissa
        aLoRA
        lora_dropout on kv_proj and routers
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
        hotswap_adapter
        writes to adapter tensors through .data
        writes to zero adapter tensors through .data
        scaling changed by set_scale, scale_layer and unscale_layer
        adapter loaded under inference_mode
        second adapter loaded under inference_mode, used outside
        mixed batch by adapter_names on kv_proj
        mixed batch by adapter_names on routers
        mixed batch by adapter_names on experts
        bf16 with autocast_adapter_dtype=True
        prepare_model_for_kbit_training with checkpointing
        optimizer steps between few-token passes
    """,
    "Trainer": """
        LoRA, fp32
        gradient checkpointing
        bf16=True: losses
    """,
    "Generation": """
        greedy, left padding
        prompt lookup
        assistant_early_exit
        hidden states
        cache_implementation=static, LoRA
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
        deepcopy
        class.from_pretrained(None, config=, state_dict=)
        RoPE linear by configuration
        RoPE dynamic by keyword
        RoPE llama3 by config.json
        AutoModelForSequenceClassification, single label
        AutoModel, on 4-bit experts
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
        a bias added to kv_proj and to a router
        torch.ao dynamic quantization of linear layers
        one token, and a text longer than max_position_embeddings
    """,
}
FAST = (
    *(f"PEFT tuners: {name} on all-linear" for name in TUNERS),
    *(f"{group}: {name.strip()}" for group, names in _GROUPS.items() for name in names.strip().splitlines()),
)
