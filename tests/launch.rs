//! Variables of launchers, and the commands that start ranks.

use recua::parallel::launch::{Engine, Launched, Launcher, Mpirun, rank_arguments, rank_variables};

fn read(variables: &[(&str, &str)]) -> recua::Result<Option<Launched>> {
    Launched::from_variables(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
}

#[test]
fn every_launcher_says_who_a_rank_is() {
    let openmpi = [
        ("OMPI_COMM_WORLD_RANK", "5"),
        ("OMPI_COMM_WORLD_SIZE", "8"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
        ("PMIX_RANK", "5"),
    ];
    let torchrun = [
        ("RANK", "3"),
        ("WORLD_SIZE", "16"),
        ("LOCAL_RANK", "3"),
        ("LOCAL_WORLD_SIZE", "8"),
        ("MASTER_ADDR", "node0"),
        ("MASTER_PORT", "29500"),
        ("TORCHELASTIC_RESTART_COUNT", "0"),
    ];
    let slurm = [
        ("SLURM_PROCID", "6"),
        ("SLURM_NTASKS", "8"),
        ("SLURM_STEP_NUM_TASKS", "8"),
        ("SLURM_LOCALID", "2"),
        ("SLURM_STEP_TASKS_PER_NODE", "4(x2)"),
        ("SLURM_NODEID", "1"),
    ];
    let mpich = [("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("MPI_LOCALRANKID", "1"), ("MPI_LOCALNRANKS", "2")];
    for (variables, launcher, numbers) in [
        (&openmpi[..], Launcher::OpenMpi, [5, 8, 1, 4]),
        (&torchrun, Launcher::Torchrun, [3, 16, 3, 8]),
        (&slurm, Launcher::Slurm, [6, 8, 2, 4]),
        (&mpich, Launcher::Mpich, [1, 2, 1, 2]),
        // mpirun inside a Slurm step is mpirun's.
        (&[&slurm[..], &openmpi].concat(), Launcher::OpenMpi, [5, 8, 1, 4]),
        // A launcher that says nothing of machines has one.
        (&[("PMI_RANK", "1"), ("PMI_SIZE", "3")], Launcher::Mpich, [1, 3, 1, 3]),
    ] {
        let l = read(variables).unwrap().unwrap();
        assert_eq!((l.launcher, [l.rank, l.world, l.local_rank, l.local_world]), (launcher, numbers), "{variables:?}");
    }
    assert_eq!(read(&torchrun).unwrap().unwrap().rendezvous, Some(("node0".into(), 29500)));
    assert_eq!(read(&openmpi).unwrap().unwrap().to_string(), "rank 5 of 8 (1 of 4 on this machine), started by OpenMPI's mpirun");
}

#[test]
fn ranks_know_where_to_meet() {
    let meeting = |variables: &[(&str, &str)]| read(variables).unwrap().unwrap().meeting;
    let place = |host: &str, port| Some((host.to_string(), port));
    let torchrun =
        |port| [("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("MASTER_ADDR", "node0"), ("MASTER_PORT", port)];
    assert_eq!(meeting(&torchrun("29500")), place("node0", 29500));
    // torchrun's own agent listens at that port: beside it.
    for (port, beside) in [("29500", 30500), ("65000", 64000)] {
        assert_eq!(meeting(&[&torchrun(port)[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat()), place("node0", beside));
    }
    let slurm = |nodes, job| {
        [
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_STEP_NODELIST", nodes),
            ("SLURM_JOB_ID", job),
            ("SLURM_STEP_ID", "0"),
        ]
    };
    for (nodes, first) in [
        ("gpu[03-06,11]", "gpu03"),
        ("gpu[7,9],other", "gpu7"),
        ("a,b[1-2]", "a"),
        ("single.domain", "single.domain"),
        ("rack[1-2]-ib,x", "rack1-ib"),
    ] {
        assert_eq!(meeting(&slurm(nodes, "1")), place(first, 20_016), "{nodes}");
    }
    assert_ne!(meeting(&slurm("a", "123456")), meeting(&slurm("a", "123457")));
    // What is set goes first.
    let set = [("MASTER_ADDR", "there"), ("MASTER_PORT", "1234")];
    assert_eq!(meeting(&[&slurm("a", "1")[..], &set].concat()), place("there", 1234));
    // mpirun on one machine needs nothing; on several it does.
    let openmpi = |local| [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_LOCAL_SIZE", local)];
    assert_eq!(meeting(&openmpi("4")), place("127.0.0.1", 29500));
    assert_eq!(meeting(&openmpi("2")), None);
    assert!(read(&openmpi("2")).unwrap().unwrap().check(Engine::Nccl).unwrap_err().to_string().contains("MASTER_ADDR"));
}

#[test]
fn ranks_of_our_own_are_known_under_any_launcher() {
    let own = rank_variables(2, 4, 4321);
    let mut variables: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
    // The launcher's own process was started by another one.
    variables.extend([("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "1"), ("TORCHELASTIC_USE_AGENT_STORE", "True")]);
    let launched = read(&variables).unwrap().unwrap();
    assert_eq!((launched.launcher, launched.rank, launched.world, launched.local_rank), (Launcher::Recua, 2, 4, 2));
    assert_eq!(launched.meeting, Some(("127.0.0.1".into(), 4321)));
    launched.check(Engine::Nccl).unwrap();
    assert_eq!(launched.to_string(), "rank 2 of 4 (2 of 4 on this machine), started by recua --nproc");
}

#[test]
fn a_process_alone_is_no_rank() {
    assert_eq!(read(&[]).unwrap(), None);
    // The script of a Slurm job, before any srun; a variable that anybody may have.
    assert_eq!(read(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]).unwrap(), None);
    assert_eq!(read(&[("RANK", "admiral")]).unwrap(), None);
}

#[test]
fn wrong_variables_are_named() {
    for (variables, said) in [
        (&[("PMI_RANK", "2"), ("PMI_SIZE", "2")][..], "PMI_RANK: expected a rank below PMI_SIZE = 2, got 2"),
        (&[("PMI_RANK", "x"), ("PMI_SIZE", "2")], "PMI_RANK: expected a number, got `x`"),
        (&[("OMPI_COMM_WORLD_RANK", "0")], "OMPI_COMM_WORLD_SIZE: it is not set, but OMPI_COMM_WORLD_RANK is"),
        (&[("RANK", "0"), ("WORLD_SIZE", "0")], "RANK: expected a rank below WORLD_SIZE = 0"),
        (
            &[("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "70000")],
            "MASTER_PORT: expected a port, got 70000",
        ),
    ] {
        let text = read(variables).unwrap_err().to_string();
        assert!(text.contains(said), "{variables:?}: {text}");
    }
}

#[test]
fn engines_and_launchers_fit() {
    let torchrun = read(&[("RANK", "0"), ("WORLD_SIZE", "4")]).unwrap().unwrap();
    let text = torchrun.check(Engine::Mpi).unwrap_err().to_string();
    assert!(text.contains("mpirun -n 4"), "{text}");
    assert!(torchrun.check(Engine::Nccl).unwrap_err().to_string().contains("MASTER_ADDR"));
    let openmpi = read(&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "4")]).unwrap().unwrap();
    openmpi.check(Engine::Mpi).unwrap();
    // Cores are shared; each rank has one at least.
    assert_eq!([1, 2, 8, 16].map(|cores| openmpi.threads(cores)), [1, 1, 2, 4]);
}

#[test]
fn mpirun_is_told_what_root_and_few_cores_need() {
    assert_eq!(Mpirun::of_version("mpirun (Open MPI) 4.1.4\n"), Some(Mpirun::OpenMpi));
    assert_eq!(Mpirun::of_version("HYDRA build details:\n  Version: 4.1"), Some(Mpirun::Hydra));
    assert_eq!(Mpirun::of_version("something else"), None);
    let (arguments, variables) = Mpirun::OpenMpi.command(4, true);
    assert_eq!(arguments.join(" "), "-n 4 --bind-to none --oversubscribe");
    assert_eq!(variables, [("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
    assert!(Mpirun::OpenMpi.command(4, false).1.is_empty());
    assert_eq!(Mpirun::Hydra.command(2, true), (["-n", "2", "-bind-to", "none"].map(String::from).to_vec(), Vec::new()));
}

#[test]
fn a_rank_gets_the_arguments_that_are_for_it() {
    let of = |given: &str, resume: bool| {
        let arguments = rank_arguments(given.split(' ').map(Into::into), resume);
        arguments.iter().map(|a| a.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    };
    let given = "train --nproc 4 --data a b --restarts=2 --run r --init w --set train.seed=1";
    assert_eq!(of(given, false), "train --data a b --run r --init w --set train.seed=1");
    assert_eq!(of(given, true), "train --data a b --run r --set train.seed=1 --resume");
    assert_eq!(of("train --nproc=4 --resume --run r", true), "train --resume --run r");
}
