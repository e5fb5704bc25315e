//! What ranks of a model exchange: two processes, on a GPU each where there are two, run the same cases on their own data.
//!
//! The inputs of both come from generators with known seeds, so each side knows what must come out.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitCode, Stdio};

use cuda_kernels::{
    Inbox, KernelConfig, KernelError, ModelKernels, NormOfSum, Normalize, StageInbox, StageLink, TensorRanks,
};
use cuda_runtime::{SharedIn, Stream, device_count};
use model_spec::Normalization;
use tch::{Kind, Tensor};

use crate::cases::{Outcome, ensure, say};
use crate::gemm::tree;
use crate::support::{Checked, Gpu, KINDS, same};
use crate::timing::micros;

/// First argument of the second process.
pub(crate) const AS_RANK: &str = "--as-rank";
/// As the model has it.
const SLOT_ELEMS: i64 = 8 << 20;
const NUM_RANKS: usize = 2;
const TIMES: &str = "times";
const CASES: &str = "cases";

/// Hands over a handle and gives that of the other side.
type Swap<'a> = &'a mut dyn FnMut(&[u8]) -> Result<Vec<u8>, Box<dyn Error>>;

/// This process among the two.
struct Side<'a> {
    gpu: &'a Gpu,
    rank: usize,
    place: SharedIn,
    swap: Swap<'a>,
}

/// The numbers that a rank has of a sum, and what is behind it.
#[derive(Clone, Copy, Debug)]
struct Sum {
    rows: i64,
    width: i64,
    num_partials: i64,
    has_bias: bool,
    norm: Option<Normalization>,
}

const fn sum(rows: i64, width: i64, num_partials: i64, norm: Option<Normalization>) -> Sum {
    Sum { rows, width, num_partials, has_bias: num_partials == 2, norm }
}

/// One block and several; small and large; rows wider than a block's threads hold at once; more than a slot holds.
const SUMS: [Sum; 8] = [
    sum(1, 4_096, 1, Some(Normalization::RmsNorm)),
    sum(3, 136, 2, Some(Normalization::LayerNorm)),
    sum(64, 8_192, 4, Some(Normalization::RmsNorm)),
    sum(33, 5_120, 2, None),
    sum(300, 8_192, 1, Some(Normalization::RmsNorm)),
    sum(777, 12_288, 2, Some(Normalization::LayerNorm)),
    sum(1_031, 2_048, 4, Some(Normalization::RmsNorm)),
    sum(2_048, 4_096, 1, None),
];

pub(crate) fn through_gpus(gpu: &Gpu) -> Outcome {
    pair(gpu, SharedIn::Gpu, CASES)?;
    alone(gpu)?;
    Ok(format!("{} sums of two ranks and of one, three types, columns, stages", SUMS.len()))
}

pub(crate) fn through_host(gpu: &Gpu) -> Outcome {
    pair(gpu, SharedIn::Host, CASES)?;
    Ok(format!("{} sums of two ranks, three types, columns, stages", SUMS.len()))
}

/// Prints how long sums of two ranks take.
pub(crate) fn times(gpu: &Gpu) -> Checked {
    for place in [SharedIn::Gpu, SharedIn::Host] {
        say(&format!(
            "two ranks on {} GPUs, through the memory of {place:?}:",
            device_count()?.min(NUM_RANKS)
        ));
        pair(gpu, place, TIMES)?;
    }
    Ok(())
}

/// Starts the other side and is the first one.
fn pair(gpu: &Gpu, place: SharedIn, what: &str) -> Checked {
    let mut child = Command::new(std::env::current_exe()?)
        .args([AS_RANK, &format!("{place:?}"), what])
        .arg(gpu.cache_dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let outcome = first_side(gpu, place, what, &mut child);
    if outcome.is_err() {
        // It may wait for this side.
        let _ = child.kill();
    }
    let status = child.wait()?;
    outcome?;
    ensure(status.success(), || format!("the other rank ended with {status}"))
}

fn first_side(gpu: &Gpu, place: SharedIn, what: &str, child: &mut Child) -> Checked {
    let (Some(mut to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("the other rank has no pipes".into());
    };
    let mut lines = BufReader::new(from).lines();
    let mut swap = |mine: &[u8]| -> Result<Vec<u8>, Box<dyn Error>> {
        writeln!(to, "{}", hex(mine))?;
        from_hex(&lines.next().ok_or("the other rank has ended")??)
    };
    run(&mut Side { gpu, rank: 0, place, swap: &mut swap }, what)?;
    match lines.next() {
        Some(Ok(line)) if line == "done" => Ok(()),
        Some(Ok(line)) => Err(format!("the other rank: {line}").into()),
        _ => Err("the other rank has ended".into()),
    }
}

/// The second process.
pub(crate) fn second_side() -> ExitCode {
    let outcome = (|| -> Checked {
        let arguments: Vec<String> = std::env::args().skip(2).collect();
        let [place, what, cache] = arguments.as_slice() else {
            return Err("which place, what, and where are compiled kernels?".into());
        };
        let place = if *place == format!("{:?}", SharedIn::Host) { SharedIn::Host } else { SharedIn::Gpu };
        let gpu = Gpu::open_at(usize::from(device_count()? > 1), cache.into())?;
        let mut lines = std::io::stdin().lock().lines();
        let mut swap = |mine: &[u8]| -> Result<Vec<u8>, Box<dyn Error>> {
            say(&hex(mine));
            from_hex(&lines.next().ok_or("the first rank has ended")??)
        };
        run(&mut Side { gpu: &gpu, rank: 1, place, swap: &mut swap }, what)
    })();
    match outcome {
        Ok(()) => {
            say("done");
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&error.to_string().replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn run(side: &mut Side<'_>, what: &str) -> Checked {
    if what == TIMES {
        return time_sums(side);
    }
    for kind in KINDS {
        // Before the ranks meet: compiling takes longer than they wait for each other.
        let kernels = side.gpu.kernels(kind, 64, 1)?;
        let ranks = join(side, kind)?;
        for (idx, sum) in SUMS.iter().enumerate() {
            // Slots are used again.
            for round in 0..3 {
                let seed = 100 * idx as i64 + 10 * round;
                let of = Group { kernels: &kernels, ranks: &ranks, rank: side.rank, num_ranks: NUM_RANKS };
                check_sum(side.gpu, &of, *sum, seed)?;
            }
        }
        columns(side, &ranks)?;
        ensure(ranks.lost().read() == 0, || "a rank was given up".to_owned())?;
        stages(side, kind)?;
    }
    Ok(())
}

fn join(side: &mut Side<'_>, kind: Kind) -> Result<TensorRanks, Box<dyn Error>> {
    let inbox = Inbox::new(&side.gpu.device, NUM_RANKS, SLOT_ELEMS, side.place)?;
    let mine = inbox.handle()?;
    let theirs = (side.swap)(&mine)?;
    let handles = if side.rank == 0 { [mine, theirs] } else { [theirs, mine] };
    let cache = Some(side.gpu.cache_dir());
    Ok(TensorRanks::new(&side.gpu.device, &config(kind), cache, inbox, (&handles, side.rank))?)
}

fn config(kind: Kind) -> KernelConfig {
    KernelConfig {
        kind,
        head_dim: 64,
        queries_per_group: 1,
        has_fp8_kv: false,
        scores: cuda_kernels::ScoreKind::default(),
    }
}

/// The same numbers in both processes.
fn numbers(gpu: &Gpu, seed: i64, shape: &[i64], kind: Kind) -> Result<Tensor, Box<dyn Error>> {
    tch::manual_seed(seed);
    gpu.put(&Tensor::f_randn(shape, (Kind::Float, tch::Device::Cpu))?.f_to_kind(kind)?)
}

/// A rank among those of a sum.
struct Group<'a> {
    kernels: &'a ModelKernels,
    ranks: &'a TensorRanks,
    rank: usize,
    num_ranks: usize,
}

fn check_sum(gpu: &Gpu, group: &Group<'_>, sum: Sum, seed: i64) -> Checked {
    let &Group { kernels, ranks, rank, num_ranks } = group;
    let kind = kernels.config().kind;
    let Sum { rows, width, num_partials, has_bias, norm } = sum;
    let partials = (0..num_ranks as i64)
        .map(|of_rank| numbers(gpu, seed + 1 + of_rank, &[num_partials, rows, width], Kind::Float))
        .collect::<Result<Vec<_>, _>>()?;
    let before = numbers(gpu, seed, &[rows, width], kind)?;
    let gain = numbers(gpu, seed + 4, &[width], Kind::Float)?;
    let bias = has_bias.then(|| numbers(gpu, seed + 5, &[width], Kind::Float)).transpose()?;
    let of_all = partials.iter().flat_map(|of_rank| (0..num_partials).map(|idx| of_rank.f_get(idx)));
    let mut total = tree(of_all.collect::<Result<_, _>>()?)?;
    if let Some(bias) = &bias {
        total = total.f_add(bias)?;
    }
    let expect = before.f_to_kind(Kind::Float)?.f_add(&total)?.f_to_kind(kind)?;
    let normed = gpu.unset(&[rows, width], kind)?;
    let residual = before.f_detach_copy()?;
    let norm_bias = if num_partials == 4 { None } else { bias.as_ref() };
    let of_sum = norm.map(|normalization| NormOfSum {
        normalization,
        gain: &gain,
        bias: norm_bias,
        eps: 1e-5,
        out: &normed,
    });
    let own = &partials[rank];
    ranks.reduce_add(&gpu.stream, kind, (own, &residual), (bias.as_ref(), of_sum.as_ref()))?;
    ensure(same(&residual, &expect)?, || format!("{sum:?} in {kind:?} is not the tree of all ranks"))?;
    let Some(normalization) = norm else { return Ok(()) };
    let expect_normed = gpu.unset(&[rows, width], kind)?;
    let launch =
        Normalize { normalization, x: &expect, gain: &gain, bias: norm_bias, eps: 1e-5, out: &expect_normed };
    kernels.norm(&gpu.stream, &launch)?;
    ensure(same(&normed, &expect_normed)?, || format!("the norm behind {sum:?} in {kind:?} has other bits"))
}

/// A rank that shares nothing adds its pieces by the same kernels.
fn alone(gpu: &Gpu) -> Checked {
    for kind in KINDS {
        let inbox = Inbox::new(&gpu.device, 1, SLOT_ELEMS, SharedIn::Gpu)?;
        let handles = [inbox.handle()?];
        let ranks =
            TensorRanks::new(&gpu.device, &config(kind), Some(gpu.cache_dir()), inbox, (&handles, 0))?;
        let kernels = gpu.kernels(kind, 64, 1)?;
        let group = Group { kernels: &kernels, ranks: &ranks, rank: 0, num_ranks: 1 };
        for sum in SUMS {
            check_sum(gpu, &group, sum, 1)?;
        }
    }
    Ok(())
}

/// Columns of different numbers side by side.
fn columns(side: &Side<'_>, ranks: &TensorRanks) -> Checked {
    let starts = [0, 700, 1_301];
    for rows in [1, 65] {
        let all = numbers(side.gpu, 7, &[rows, starts[2]], Kind::Float)?;
        let own = starts[side.rank]..starts[side.rank + 1];
        let mine = all.f_narrow(1, own.start, own.end - own.start)?.f_contiguous()?;
        let out = side.gpu.unset(&[rows, starts[2]], Kind::Float)?;
        ranks.gather_columns(&side.gpu.stream, &mine, &out, &starts)?;
        ensure(same(&out, &all)?, || format!("{rows} rows of columns are not side by side"))?;
    }
    Ok(())
}

/// Messages from the first rank to the second: short ones, and more than all slots hold.
fn stages(side: &mut Side<'_>, kind: Kind) -> Checked {
    let device = &side.gpu.device;
    let cache = Some(side.gpu.cache_dir());
    let link = if side.rank == 0 {
        let handle = (side.swap)(&[])?;
        StageLink::sending(device, &config(kind), cache, &handle, 1)?
    } else {
        let inbox = StageInbox::new(device, side.place)?;
        (side.swap)(&inbox.handle()?)?;
        StageLink::receiving(device, &config(kind), cache, inbox, 0)?
    };
    for (idx, rows) in [1, 64, 7, 3_000, 5_000, 1, 2, 3, 4, 5, 6].into_iter().enumerate() {
        let expect = numbers(side.gpu, idx as i64, &[rows, 4_096], kind)?;
        let data = match side.rank {
            0 => expect.f_detach_copy()?,
            _ => side.gpu.unset(&[rows, 4_096], kind)?,
        };
        link.pass(&side.gpu.stream, kind, &data)?;
        ensure(same(&data, &expect)?, || {
            format!("message {idx} of {rows} rows in {kind:?} came as another")
        })?;
    }
    ensure(link.lost().read() == 0, || "a stage was given up".to_owned())
}

/// What issue and peers have beside the times of a sum with its norm: rows of 8,192.
const TIMED: [(i64, &str); 4] = [
    (1, "wanted 5; NCCL's sum alone 10.8, symmetric memory 7.8"),
    (32, "wanted 7; 15.1, 9.5"),
    (64, "wanted 9; 17.0, 10.6"),
    (2_048, "wanted 105; 141, 111"),
];

fn time_sums(side: &mut Side<'_>) -> Checked {
    const NUM_CALLS: u32 = 16;
    const WIDTH: i64 = 8_192;
    let kind = Kind::BFloat16;
    let ranks = join(side, kind)?;
    for (rows, beside) in TIMED {
        let partials = numbers(side.gpu, 1, &[1, rows, WIDTH], Kind::Float)?;
        let residual = numbers(side.gpu, 2, &[rows, WIDTH], kind)?;
        let normed = side.gpu.unset(&[rows, WIDTH], kind)?;
        let gain = numbers(side.gpu, 3, &[WIDTH], Kind::Float)?;
        let norm = NormOfSum {
            normalization: Normalization::RmsNorm,
            gain: &gain,
            bias: None,
            eps: 1e-5,
            out: &normed,
        };
        let time = |norm: Option<&NormOfSum<'_>>| {
            let body = |stream: &Stream| -> Result<(), KernelError> {
                (0..NUM_CALLS)
                    .try_for_each(|_| ranks.reduce_add(stream, kind, (&partials, &residual), (None, norm)))
            };
            micros(side.gpu, body).map(|time| time / f64::from(NUM_CALLS))
        };
        let (alone, with_norm) = (time(None)?, time(Some(&norm))?);
        if side.rank == 0 {
            say(&format!(
                "{rows} rows of {WIDTH}: sum and residual {alone:.1} us, with the norm {with_norm:.1} us ({beside})"
            ));
        }
    }
    ensure(ranks.lost().read() == 0, || "a rank was given up".to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let digits: Vec<char> = text.trim().chars().collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16);
    Ok(digits.chunks(2).map(byte).collect::<Result<_, _>>().map_err(|_| format!("no handle: `{text}`"))?)
}
