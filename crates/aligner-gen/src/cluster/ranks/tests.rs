use super::*;

fn devices(per_node: u32, num_nodes: u32) -> Devices {
    Devices { per_node: Some(per_node), num_nodes }
}

fn find(variables: &str, devices: Devices) -> Result<Role, Failure> {
    let env = |name: &str| {
        variables.split_whitespace().find_map(|pair| match pair.split_once('=') {
            Some((key, value)) if key == name => Some(value.to_owned()),
            _ => None,
        })
    };
    Role::find(&env, devices)
}

fn place(rank: u32, world_size: u32, local_rank: u32, local_size: u32, address: &str) -> Role {
    let (host, port) = address.split_once(':').unwrap();
    let meeting = Meeting::Address { host: host.to_owned(), port: port.parse().unwrap() };
    Role::Rank(RankPlace { rank, world_size, local_rank, local_size, meeting })
}

const SLURM: &str = "SLURM_NTASKS=4 SLURM_PROCID=3 SLURM_LOCALID=1 SLURM_NODEID=1 SLURM_STEP_ID=0 SLURM_NNODES=2 \
                     SLURM_STEP_NODELIST=n[7-8] SLURM_JOB_ID=123456 SLURM_JOB_NAME=gen";
const OPEN_MPI: &str = "OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=2 \
                        OMPI_COMM_WORLD_LOCAL_SIZE=4 OMPI_MCA_ess_base_jobid=1179713537";

#[test]
fn each_launcher_is_recognised() {
    let check = |variables: &str, devices, expect: Role| {
        assert_eq!(find(variables, devices).unwrap(), expect, "{variables}");
    };
    let torchrun = "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 MASTER_ADDR=h MASTER_PORT=99";
    check(torchrun, devices(4, 2), place(5, 8, 1, 4, "h:99"));
    check("RANK=1 WORLD_SIZE=2 LOCAL_RANK=1", devices(2, 1), place(1, 2, 1, 2, "127.0.0.1:12910"));
    check(SLURM, devices(2, 2), place(3, 4, 1, 2, "n7:18456"));
    check(&format!("{SLURM} MASTER_ADDR=h MASTER_PORT=5"), devices(2, 2), place(3, 4, 1, 2, "h:5"));
    check(OPEN_MPI, devices(4, 1), place(2, 4, 2, 4, "127.0.0.1:23001"));
    let pmi = "PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2";
    check(pmi, devices(2, 1), place(1, 2, 1, 2, "127.0.0.1:12910"));
    let lsf =
        "LSB_JOBID=98765 JSM_NAMESPACE_RANK=1 JSM_NAMESPACE_SIZE=2 JSM_NAMESPACE_LOCAL_RANK=0 LSB_HOSTS=x";
    let hosts = [("LSB_HOSTS", "batch5 h1 h2")];
    let env = |name: &str| {
        let fixed = hosts.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        fixed.or_else(|| {
            lsf.split_whitespace()
                .find_map(|pair| Some(pair.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
        })
    };
    assert_eq!(Role::find(&env, devices(1, 2)).unwrap(), place(1, 2, 0, 1, "h1:10765"));
}

#[test]
fn the_first_complete_set_wins() {
    let torchrun = "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 MASTER_PORT=7";
    let both = format!("{torchrun} SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_STEP_ID=0 SLURM_STEP_NODELIST=n1");
    assert_eq!(find(&both, devices(2, 1)).unwrap(), place(1, 2, 1, 2, "127.0.0.1:7"));
    assert_eq!(find(&format!("{SLURM} {OPEN_MPI}"), devices(2, 2)).unwrap(), place(3, 4, 1, 2, "n7:18456"));
    // Half a set is none.
    assert_eq!(find(&format!("RANK=1 {SLURM}"), devices(2, 2)).unwrap(), place(3, 4, 1, 2, "n7:18456"));
}

#[test]
fn torchruns_agent_has_a_store_of_its_own() {
    let variables = "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 MASTER_ADDR=h MASTER_PORT=9 TORCHELASTIC_RUN_ID=r \
                     TORCHELASTIC_RESTART_COUNT=2 TORCHELASTIC_USE_AGENT_STORE=True";
    let Role::Rank(place) = find(variables, devices(2, 1)).unwrap() else { panic!("no rank") };
    let expect = Meeting::Agent { host: "h".to_owned(), port: 9, key: "aligner-gen/r/2".to_owned() };
    assert_eq!(place.meeting, expect);
}

#[test]
fn without_a_launcher_the_program_is_one() {
    let launcher = |first_rank, num_ranks, world_size, address: Option<(&str, u16)>| {
        let address = address.map(|(host, port)| Address { host: host.to_owned(), port });
        Role::Launcher(LauncherPlan { first_rank, num_ranks, world_size, address })
    };
    assert_eq!(find("", devices(1, 1)).unwrap(), Role::Alone);
    assert_eq!(find("", Devices { per_node: None, num_nodes: 1 }).unwrap(), Role::Alone);
    assert_eq!(find("", devices(8, 1)).unwrap(), launcher(0, 8, 8, None));
    let node = "NODE_RANK=1 MASTER_ADDR=h MASTER_PORT=9";
    assert_eq!(find(node, devices(4, 2)).unwrap(), launcher(4, 4, 8, Some(("h", 9))));
    let pod = "JOB_COMPLETION_INDEX=1 MASTER_ADDR=h-0.h MASTER_PORT=9";
    assert_eq!(find(pod, devices(4, 2)).unwrap(), launcher(4, 4, 8, Some(("h-0.h", 9))));
    // Each pod of a job of one machine has a job of its own.
    assert_eq!(find(pod, devices(4, 1)).unwrap(), launcher(0, 4, 4, None));
    let both = "NODE_RANK=0 JOB_COMPLETION_INDEX=1 MASTER_ADDR=h MASTER_PORT=9";
    assert_eq!(find(both, devices(4, 2)).unwrap(), launcher(0, 4, 8, Some(("h", 9))));
    // A shell in an allocation, a batch script without srun, a shell that is a step.
    let outside = [
        SLURM.replace("SLURM_STEP_ID=0", ""),
        SLURM.replace("SLURM_STEP_NODELIST=n[7-8]", ""),
        SLURM.replace("NTASKS=4", "NTASKS=1").replace("PROCID=3", "PROCID=0").replace("=gen", "=bash"),
    ];
    for variables in outside {
        assert_eq!(find(&variables, devices(2, 1)).unwrap(), launcher(0, 2, 2, None), "{variables}");
    }
    let steps_of_a_shell = SLURM.replace("=gen", "=interactive");
    assert_eq!(find(&steps_of_a_shell, devices(2, 2)).unwrap(), place(3, 4, 1, 2, "n7:18456"));
    assert_eq!(
        find("SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_STEP_ID=0 SLURM_STEP_NODELIST=n1", devices(1, 1)).unwrap(),
        Role::Alone
    );
}

#[test]
fn contradictions_print_both() {
    let message = |variables: &str, devices| find(variables, devices).unwrap_err().sentence();
    insta::assert_snapshot!(message("RANK=0 WORLD_SIZE=4 LOCAL_RANK=0", devices(8, 1)), @"torchrun started `WORLD_SIZE=4`, but `trainer.devices=8 trainer.num_nodes=1` makes 8 ranks; set both alike");
    insta::assert_snapshot!(message("RANK=0 WORLD_SIZE=8 LOCAL_RANK=0 LOCAL_WORLD_SIZE=4", devices(8, 1)), @"torchrun started `LOCAL_WORLD_SIZE=4`, but `trainer.devices=8 trainer.num_nodes=1` is for 8 ranks on each machine; set both alike");
    insta::assert_snapshot!(message(SLURM, devices(4, 1)), @"Slurm started `SLURM_NNODES=2`, but `trainer.devices=4 trainer.num_nodes=1` is for 1 machines; set both alike");
    insta::assert_snapshot!(message(SLURM, devices(8, 2)), @"Slurm started `SLURM_NTASKS=4`, but `trainer.devices=8 trainer.num_nodes=2` makes 16 ranks; set both alike");
    insta::assert_snapshot!(message(OPEN_MPI, devices(1, 1)), @"mpirun started `OMPI_COMM_WORLD_LOCAL_SIZE=4`, but `trainer.devices=1 trainer.num_nodes=1` is for 1 ranks on each machine; set both alike");
    insta::assert_snapshot!(message("OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=0", devices(2, 2)), @"mpirun does not say where rank 0 runs: set MASTER_ADDR to its host and MASTER_PORT to a free port for all ranks");
    insta::assert_snapshot!(message("RANK=4 WORLD_SIZE=4 LOCAL_RANK=0", devices(4, 1)), @"torchrun says `RANK=4` with `WORLD_SIZE=4`: a rank must be below the number of ranks");
    insta::assert_snapshot!(message("RANK=x WORLD_SIZE=4 LOCAL_RANK=0", devices(4, 1)), @"the environment variable RANK must be a whole number, found `x`");
    insta::assert_snapshot!(message("MASTER_PORT=70000 RANK=0 WORLD_SIZE=4 LOCAL_RANK=0", devices(4, 1)), @"MASTER_PORT must be from 1 to 65535, found 70000");
    insta::assert_snapshot!(message("", devices(8, 4)), @"`trainer.num_nodes=4` is for 4 machines, and nothing has started this process on them: start it with srun, torchrun or mpirun, or once on each machine with NODE_RANK (in an indexed Job of Kubernetes JOB_COMPLETION_INDEX is there), MASTER_ADDR and MASTER_PORT set; for this machine alone set `trainer.num_nodes=1`");
    insta::assert_snapshot!(message("NODE_RANK=4 MASTER_ADDR=h MASTER_PORT=1", devices(8, 4)), @"`NODE_RANK=4`, but `trainer.num_nodes=4`: it must be below");
    insta::assert_snapshot!(message("JOB_COMPLETION_INDEX=4 MASTER_ADDR=h MASTER_PORT=1", devices(8, 4)), @"`JOB_COMPLETION_INDEX=4`, but `trainer.num_nodes=4`: it must be below");
    insta::assert_snapshot!(message("JOB_COMPLETION_INDEX=x MASTER_ADDR=h MASTER_PORT=1", devices(8, 4)), @"the environment variable JOB_COMPLETION_INDEX must be a whole number, found `x`");
}

#[test]
fn slurm_binds_gpus_when_it_is_asked_to() {
    let check = |variables: &str, expect| {
        let env = |name: &str| {
            variables.split(' ').find_map(|pair| Some(pair.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
        };
        assert_eq!(has_own_gpu(&env), expect, "{variables}");
    };
    check("SLURM_STEP_ID=0 SLURM_GPUS_PER_TASK=1", true);
    check("SLURM_STEP_ID=0 SLURM_GPU_BIND=single:1", true);
    check("SLURM_STEP_ID=0 SLURM_GPU_BIND=none", false);
    check("SLURM_STEP_ID=0", false);
    check("SLURM_GPUS_PER_TASK=1", false);
}
