//! Every family of models through the program, with either engine and its own `trt_llm.model_type`.

use nemo_format::{ConvertOptions, convert_checkpoint};

use crate::support::{Job, fixture};

const FAMILIES: [(&str, &str); 35] = [
    ("cohere", "cohere"),
    ("cohere_plus", "cohere"),
    ("granite", "granite"),
    ("nemotron_nas", "nemotron_nas"),
    ("olmo2", "olmo2"),
    ("phi3", "phi3"),
    ("phi3_plain", "phi3"),
    ("qwen2_window", "qwen2"),
    ("qwen3_yarn", "qwen3"),
    ("stablelm", "stablelm"),
    ("stablelm_parallel", "stablelm"),
    ("starcoder2", "starcoder2"),
    ("falcon40b", "falcon"),
    ("falcon7b", "falcon"),
    ("gemma", "gemma"),
    ("gemma2", "gemma"),
    ("gemma3", "gemma"),
    ("gpt2", "gptnext"),
    ("gpt_oss", "gpt_oss"),
    ("gpt_oss_mxfp4", "gpt_oss"),
    ("gpt_neox", "gptnext"),
    ("gpt_neox_sequential", "gptnext"),
    ("gptj", "gptj"),
    ("llama31", "llama"),
    ("llama32", "llama"),
    ("mistral", "llama"),
    ("mixtral", "mixtral"),
    ("nemotron", "gptnext"),
    ("olmoe", "olmoe"),
    ("qwen2", "qwen2"),
    ("qwen2_moe", "qwen2_moe"),
    ("qwen2_tied", "qwen2"),
    ("qwen3", "qwen3"),
    ("qwen3_moe", "qwen3_moe"),
    ("qwen3_tied", "qwen3"),
];

#[test]
fn every_family_generates_the_same_tokens_with_both_engines() {
    for (family, model_type) in FAMILIES {
        let records = [false, true].map(|enable| {
            let job = Job::new(2);
            let checkpoint = job.path().join("converted.nemo");
            convert_checkpoint(&fixture("families").join(family), &checkpoint, &ConvertOptions::default()).unwrap();
            let job = job.with(&[
                &format!("pretrained_checkpoint.restore_from_path={}", checkpoint.display()),
                &format!("trainer.generation.trt_llm.enable={enable}"),
                &format!("trainer.generation.trt_llm.model_type={model_type}"),
                "model.generation.sampling_params.use_greedy=true",
                "model.generation.num_responses_to_gen=1",
                "model.generation.length_params.max_length=8",
                "model.generation.output_fields=[token_ids]",
                // Short enough for 48 positions of tokenizers with 160 pieces.
                "model.data.chat_prompt_tokens={system_turn_start:a,turn_start:b,end_of_turn:c,end_of_name:d}",
            ]);
            // The prompts are longer than what its short list of rotary factors is for, so the long one counts.
            let longer = (family == "phi3").then_some("++model.encoder_seq_length=64");
            let job = job.with(longer.as_slice());
            job.run().expect_code(0);
            job.records()
        });
        assert_eq!(records[0].len(), 2, "{family}");
        assert_eq!(records[0], records[1], "{family}");
        let lengths = records[0].iter().map(|record| record["token_ids"][0].as_array().unwrap().len());
        assert!(lengths.min() >= Some(1), "{family}: {records:?}");
    }
}

#[test]
fn folders_of_megatron_bridge_generate_what_their_conversions_do() {
    for (name, model_type) in [("qwen2_tied", "qwen2"), ("qwen3", "qwen3"), ("qwen3_moe", "qwen3_moe")] {
        let folder = fixture("bridge").join(name);
        let kept = tempfile::tempdir().unwrap();
        let converted = kept.path().join("converted.nemo");
        convert_checkpoint(&folder, &converted, &ConvertOptions::default()).unwrap();
        let records = [folder, converted].map(|checkpoint| {
            let job = Job::new(2).with(&[
                &format!("pretrained_checkpoint.restore_from_path={}", checkpoint.display()),
                &format!("trainer.generation.trt_llm.model_type={model_type}"),
                "trainer.generation.trt_llm.enable=true",
                "model.generation.length_params.max_length=8",
                "model.data.chat_prompt_tokens={system_turn_start:a,turn_start:b,end_of_turn:c,end_of_name:d}",
            ]);
            job.run().expect_code(0);
            job.records()
        });
        assert_eq!(records[0].len(), 2, "{name}");
        assert_eq!(records[0], records[1], "{name}");
    }
}

/// Given is the root; a tokenizer that is not there is the user's to name.
#[test]
fn folders_of_megatron_lm_generate_what_the_models_they_hold_do() {
    let chat = "model.data.chat_prompt_tokens={system_turn_start:a,turn_start:b,end_of_turn:c,end_of_name:d}";
    let of = |checkpoint: &std::path::Path, model_type: &str, more: &[&str]| {
        let restore = format!("pretrained_checkpoint.restore_from_path={}", checkpoint.display());
        let model_type = format!("trainer.generation.trt_llm.model_type={model_type}");
        let common = [
            restore.as_str(),
            &model_type,
            "trainer.generation.trt_llm.enable=true",
            "model.generation.length_params.max_length=8",
            chat,
        ];
        Job::new(2).with(&[&common[..], more].concat())
    };
    for (name, model_type) in [("qwen3", "qwen3"), ("mixtral", "mixtral")] {
        let kept = tempfile::tempdir().unwrap();
        let converted = kept.path().join("converted.nemo");
        convert_checkpoint(&fixture("families").join(name), &converted, &ConvertOptions::default()).unwrap();
        let tokenizer = fixture("families/mixtral/tokenizer.model");
        let named = format!("++model.tokenizer.model={}", tokenizer.display());
        let more: &[&str] = match name {
            "mixtral" => {
                &["++model.tokenizer.library=sentencepiece", &named, "++model.encoder_seq_length=48"]
            }
            _ => &[],
        };
        let jobs =
            [of(&converted, model_type, &[]), of(&fixture("megatron_lm").join(name), model_type, more)];
        let [expected, actual] = jobs.map(|job| {
            job.run().expect_code(0);
            job.records()
        });
        assert_eq!(expected.len(), 2, "{name}");
        assert_eq!(expected, actual, "{name}");
    }
    let ended = of(&fixture("megatron_lm/mixtral"), "mixtral", &[]).run().expect_code(4);
    assert!(ended.stderr.contains("++model.tokenizer.library=huggingface"), "{}", ended.stderr);
}
