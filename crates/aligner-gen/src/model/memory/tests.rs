use model_core::RawModelConfig;
use model_spec::{ExpertSharing, NamedShape, TableRows};
use serde_json::json;

use super::*;

const ALONE: ExpertSums = ExpertSums { reduction: Reduction::Chain, num_sharing: 1, has_some: false };

const DEMAND: Demand = Demand {
    longest_sequence_tokens: 100,
    num_sequences: 8,
    neighbours: Neighbours { num_on_device: 1, num_on_host: 1 },
    limits: RoomPlan { max_batch: None, kv_cache_memory_bytes: None, swap_space_bytes: None },
    structures: RowStructures::None,
};

fn with_max_batch(max_batch: Option<usize>) -> Demand {
    Demand { limits: RoomPlan { max_batch, ..DEMAND.limits }, ..DEMAND }
}

const MIB: u64 = 1 << 20;
const SIZES: Sizes = Sizes {
    weight_bytes: 0,
    workspace_bytes: 0,
    bytes_per_block: 1,
    tables: KvTables::ONE,
    cuts_prompts: true,
};

fn fit(bytes_per_block: u64, available: Option<u64>) -> Option<(usize, usize)> {
    let sizes = Sizes { weight_bytes: MIB, workspace_bytes: MIB, bytes_per_block, ..SIZES };
    let plan = MemoryPlan::fit(Room::host(available), sizes, DEMAND).ok()?;
    Some((plan.limits.num_blocks, plan.num_longest_seqs))
}

#[test]
fn cache_is_what_is_needed_or_what_fits() {
    assert_eq!(fit(MIB, Some(1 << 34)), Some((40, 8)));
    assert_eq!(fit(MIB, None), Some((40, 8)));
    assert_eq!(fit(1 << 27, Some(1 << 34)), Some((32, 6)));
    assert_eq!(fit(MIB, Some(14 * MIB)), Some((9, 1)));
    assert_eq!(fit(MIB, Some(8 * MIB)), Some((5, 1)));
    assert_eq!(fit(MIB, Some(6 * MIB)), None);
}

#[test]
fn a_gpu_gives_the_cache_what_is_left() {
    let sizes = |gibibytes: u64| Sizes {
        weight_bytes: gibibytes << 30,
        workspace_bytes: GPU_WORKSPACE_BYTES,
        bytes_per_block: 16 * MIB,
        ..SIZES
    };
    let room = Room { swap_space_bytes: 1 << 40, ..Room::gpu(Some(80 << 30)) };
    assert_eq!(room.cache_bytes(sizes(13)), 64 << 30);
    assert_eq!(room.cache_bytes(sizes(90)), 0);
    let demand = Demand { longest_sequence_tokens: 320, num_sequences: 1000, ..DEMAND };
    let plan = MemoryPlan::fit(room, sizes(13), demand).unwrap();
    assert_eq!((plan.limits.max_num_seqs, plan.limits.num_blocks), (1000, 4096));
    // The rest of what 1,000 sequences could need at the most, and a block to exchange with.
    assert_eq!(plan.limits.num_host_blocks, 1000 * 11 - 4096 + 1);
    let limits = RoomPlan { swap_space_bytes: Some(1 << 30), ..demand.limits };
    let plan = MemoryPlan::fit(room, sizes(13), Demand { limits, ..demand }).unwrap();
    assert_eq!(plan.limits.num_host_blocks, 64);
    let limits = RoomPlan { max_batch: Some(256), ..demand.limits };
    let plan = MemoryPlan::fit(room, sizes(13), Demand { limits, ..demand }).unwrap();
    assert_eq!((plan.limits.num_blocks, plan.limits.num_host_blocks), (256 * 11, 0), "all have room");
}

#[test]
fn a_gpu_needs_room_for_what_grows_with_rows() {
    let config = json!({
        "num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32,
        "num_query_groups": 8, "encoder_seq_length": 131_072
    });
    let raw: RawModelConfig = serde_json::from_value(config).unwrap();
    let rows = TableRows { vocab: 128_256, positions: 0 };
    let model = ModelConfig::try_from(raw).unwrap().spec(rows);
    let gibibytes = |rows: usize, longest_sequence_tokens| {
        let demand = Demand { longest_sequence_tokens, num_sequences: 5000, ..with_max_batch(Some(rows)) };
        Room::gpu(None).workspace_bytes(&model, ALONE, demand) as f64 / f64::from(1 << 30)
    };
    assert!((gibibytes(256, 4096) - 3.0).abs() < 1e-9);
    assert!((3.0..3.2).contains(&gibibytes(1024, 4096)), "{}", gibibytes(1024, 4096));
    let demand = Demand { num_sequences: 5000, ..with_max_batch(Some(1024)) };
    let bytes = |structures| Room::gpu(None).workspace_bytes(&model, ALONE, Demand { structures, ..demand });
    let more = bytes(RowStructures::Some) - bytes(RowStructures::None);
    assert!((128_256 * 4 * 1024 - (100 << 20)..=128_256 * 4 * 1024).contains(&more), "{more}");
    assert!((7.0..7.3).contains(&gibibytes(1024, 131_072)), "{}", gibibytes(1024, 131_072));
}

#[test]
fn a_gpu_has_as_many_rows_as_its_memory_holds_at_half_their_length() {
    let rows = |longest_sequence_tokens, num_sequences| {
        let sizes_in = |room: Room| Sizes {
            weight_bytes: 16 << 30,
            workspace_bytes: (2 << 30) + ((room.max_num_seqs as u64) << 20),
            bytes_per_block: 4 * MIB,
            ..SIZES
        };
        let demand = Demand { longest_sequence_tokens, num_sequences, ..DEMAND };
        let room = Room::gpu(Some(80 << 30)).with_rows(demand, sizes_in);
        (room.max_num_seqs, room.num_seqs(demand))
    };
    assert_eq!(rows(768, 5000), (1024, 1024));
    assert_eq!(rows(768, 300), (1024, 300));
    assert_eq!(rows(1800, 5000), (512, 512));
    assert_eq!(rows(100_000, 5000), (256, 256));
}

#[test]
fn the_users_cache_is_taken_or_refused() {
    let sizes = Sizes { weight_bytes: MIB, workspace_bytes: MIB, bytes_per_block: MIB, ..SIZES };
    let fit = |bytes| {
        let limits =
            RoomPlan { kv_cache_memory_bytes: Some(bytes), swap_space_bytes: Some(1 << 30), ..DEMAND.limits };
        MemoryPlan::fit(Room::host(Some(1 << 34)), sizes, Demand { limits, ..DEMAND })
    };
    let plan = fit(6 * MIB + 5).unwrap();
    assert_eq!((plan.limits.num_blocks, plan.limits.num_host_blocks), (6, 35));
    insta::assert_snapshot!(fit(5 * MIB).unwrap().table(), @r"
    weights               1.0 MB
    intermediate results  1.0 MB
    KV cache              5.2 MB (5 blocks of 32 tokens)
    swap space            up to 37.7 MB of the host (36 blocks)
    sequences at once     up to 8, 1 of the greatest length
    memory available      17.2 GB
    ");
    insta::assert_snapshot!(
        fit(5 * MIB - 1).unwrap_err().sentence(),
        @"`trainer.generation.kv_cache_memory_bytes` must be at least 5242880, which one sequence of 100 tokens takes, found 5242879"
    );
}

#[test]
fn what_fp8_saves_is_shown_in_bytes_and_rows() {
    let fp8 = Saving {
        plain: Float::Bf16,
        weight_bytes: [16 << 30, 9 << 30],
        bytes_per_block: [4 * MIB, 2 * MIB],
        num_longest_seqs_without: Some(120),
    };
    insta::assert_snapshot!(fp8.line(300), @"7.5 GB of weights (43.8 %), 2.1 MB of each block of the KV cache (50.0 %); 300 sequences of the greatest length at once, 120 without");
    let cache_alone = Saving { weight_bytes: [1, 1], num_longest_seqs_without: None, ..fp8 };
    insta::assert_snapshot!(cache_alone.line(3), @"2.1 MB of each block of the KV cache (50.0 %); the model does not fit without");
    let on_cpu = Saving { bytes_per_block: [1, 1], ..cache_alone };
    insta::assert_snapshot!(on_cpu.line(3), @"nothing here: these kernels hold the numbers of FP8 as bf16");
}

#[test]
fn a_gpu_takes_so_many_sequences_and_no_more() {
    let sizes = Sizes { weight_bytes: MIB, workspace_bytes: MIB, bytes_per_block: MIB, ..SIZES };
    let fit = |max_batch| {
        let demand = Demand { num_sequences: 5000, ..with_max_batch(Some(max_batch)) };
        MemoryPlan::fit(Room::gpu(None), sizes, demand)
    };
    assert_eq!(fit(1024).unwrap().limits.max_num_seqs, 1024);
    insta::assert_snapshot!(
        fit(1025).unwrap_err().sentence(),
        @"`trainer.generation.max_batch` asks for 1025 sequences at once, and a GPU takes at most 1024"
    );
}

#[test]
fn the_batch_is_the_users_where_that_is_set() {
    let seqs = |num_sequences, max_batch| {
        Room::host(None).num_seqs(Demand { num_sequences, ..with_max_batch(max_batch) })
    };
    assert_eq!(seqs(1000, None), MAX_NUM_SEQS);
    assert_eq!(seqs(1000, Some(7)), 7);
    assert_eq!(seqs(1000, Some(200)), 200);
    assert_eq!((seqs(3, Some(7)), seqs(0, None)), (3, 1));
}

#[test]
fn the_refusal_says_what_is_missing() {
    let sizes = Sizes { weight_bytes: 3 << 30, workspace_bytes: 200 * MIB, bytes_per_block: MIB, ..SIZES };
    let failure = MemoryPlan::fit(Room::host(Some(1 << 30)), sizes, DEMAND).unwrap_err();
    assert_eq!(failure.status, ExitStatus::Device);
    insta::assert_snapshot!(failure.sentence(), @"the model needs 3.2 GB for weights, 209.7 MB for intermediate results and at least 5.2 MB for the KV cache of one sequence of 100 tokens; 1.1 GB of memory are available");
}

#[test]
fn windows_are_counted_for_what_they_keep() {
    let tables = KvTables { num_full: 1, num_windowed: 5, window_tokens: 1024 };
    let sizes = Sizes { weight_bytes: MIB, workspace_bytes: MIB, bytes_per_block: MIB / 4, tables, ..SIZES };
    let demand = Demand { longest_sequence_tokens: 32_000, num_sequences: 4, ..DEMAND };
    let room = Room::host(Some(1 << 40));
    // Of 1,001 columns 33 are in the window, two ahead, and 65 while a part of a prompt is computed.
    let LongestBlocks { each, least, wanted } = sizes.longest_blocks(room, demand);
    assert_eq!((each, least, wanted), (1001 + 5 * 35, 1001 + 5 * (65 + 35), 4 * (1001 + 5 * 35) + 5 * 65));
    let whole = Sizes { cuts_prompts: false, ..sizes };
    assert_eq!(whole.longest_blocks(room, demand).least, 6 * 1001, "a prompt may be as long as it all");
    let plan = MemoryPlan::fit(room, sizes, demand).unwrap();
    assert_eq!((plan.limits.num_blocks, plan.num_longest_seqs), (wanted, 4));
    assert_eq!(plan.limits.tables, tables);
    let windows = WindowSaving { window_tokens: 1024, bytes: 3 << 30, bytes_without: 14 << 30 };
    insta::assert_snapshot!(windows.line(32_000), @"layers with a window of 1,024 tokens keep no more: 3.2 GB for a sequence of 32,000 tokens instead of 15.0 GB");
}

#[test]
fn outputs_of_experts_are_counted_in_pieces() {
    let shape = NamedShape::Qwen3_30bA3b.shape();
    let rows = TableRows { vocab: shape.padded_vocab_size, positions: 0 };
    let model = shape.uniform.spec(rows);
    let elems = |experts, tp_size, reduction| {
        let place = ShardPlace { tp_size, experts, ..ShardPlace::whole(&model) };
        let part = place.part_of(&model).unwrap();
        ExpertSums::of(&place, reduction).elems(2048, part.layers[0].moe().unwrap())
    };
    let (widths, numbers) = (ExpertSharing::Widths, ExpertSharing::Numbers);
    let of = |num_pieces: usize, width: usize| (num_pieces + 1) * 9 * 2048 + 3 * width;
    assert_eq!(elems(widths, 1, Reduction::Chain), of(1, 768));
    assert_eq!(elems(widths, 1, Reduction::Tree), of(8, 768));
    assert_eq!(elems(widths, 4, Reduction::Tree), of(2, 192));
    assert_eq!(elems(numbers, 4, Reduction::Tree), of(8, 768));
    let received = |experts, num_tokens| {
        let place = ShardPlace { tp_size: 4, experts, ..ShardPlace::whole(&model) };
        let moe = model.layers[0].moe().unwrap();
        ExpertSums::of(&place, Reduction::Tree).received_bytes(2048, moe, num_tokens)
    };
    assert_eq!(received(widths, 100), 0);
    assert_eq!([1, 100, 1000].map(|rows| received(numbers, rows)), [3 << 19, 150 << 20, 192 << 20]);
}
