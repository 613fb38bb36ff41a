//! The child between its start and Python: limits, namespaces with a root folder of their own, Landlock, seccomp.
//!
//! The order counts: what needs rights comes first, then rights go, then doors close. A layer that the kernel does not give is left out;
//! [`enter`] refuses where what is left does not wall off files.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::{Error, Write};
use std::os::fd::FromRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule};

use super::{RUNNER, Settings, Walls};

/// A user without rights: `nobody`.
const NOBODY: libc::uid_t = 65534;

/// What programs need beside Python's own folders: the system's libraries.
const SYSTEM: [&str; 5] = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache"];

const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];

/// The channel on which the parent learns what stands and how the program ended: standard error, until the program gets that.
pub(super) fn report(walls: &Result<Walls, String>) {
    if let Ok(text) = serde_json::to_string(walls) {
        // The parent is gone: nobody is left to tell.
        let _ = writeln!(std::io::stderr(), "walls:{text}");
    }
}

fn check(result: libc::c_long, what: &str) -> Result<libc::c_long, String> {
    if result < 0 { Err(format!("{what}: {}", Error::last_os_error())) } else { Ok(result) }
}

fn path(path: &Path) -> Result<CString, String> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| format!("{}: a zero byte in a path", path.display()))
}

/// Becomes Python, or says why not.
pub(super) fn enter(settings: &Settings) -> String {
    match build(settings) {
        Ok(()) => "the child came back".into(),
        Err(problem) => problem,
    }
}

fn build(settings: &Settings) -> Result<(), String> {
    // SAFETY: plain system calls.
    unsafe {
        // If the parent dies, so do we.
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into(), "prctl")?;
        check(libc::setsid().into(), "setsid")?;
        libc::umask(0o077);
    }
    // SAFETY: no arguments, no memory.
    let root = unsafe { libc::geteuid() } == 0;
    let mut walls = Walls::default();
    let (mut dir, mut own_user) = (settings.dir.clone(), false);
    if settings.walled && !root {
        // A user namespace is for a process of one thread: a child is.
        fork_into()?;
    }
    if settings.walled && namespaces(root) {
        match new_root(settings) {
            Ok(inside) => {
                walls.namespaces = true;
                dir = inside;
            }
            Err(problem) if root => return Err(format!("a root folder of its own: {problem}")),
            // A namespace without a root folder of its own still has no network; Landlock must wall off the files.
            Err(_) => {}
        }
        own_user = true;
        fork_into()?;
    }
    std::env::set_current_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    if settings.walled && root {
        own_user = become_nobody(&dir)?;
    }
    limits(settings, own_user)?;
    // SAFETY: plain system calls. Standard error becomes descriptor 3, standard output both 1 and 2; no other stays open in Python.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into(), "no_new_privs")?;
        check(libc::dup2(2, 3).into(), "dup2")?;
        libc::syscall(libc::SYS_close_range, 4, libc::c_uint::MAX, 4 /* CLOSE_RANGE_CLOEXEC */);
    }
    if settings.walled {
        walls.landlock = landlock(settings, &dir).map_err(|error| format!("Landlock: {error}"))?;
        if walls.landlock.is_none() && !walls.namespaces {
            return Err("the kernel gives neither Landlock nor namespaces, so that files cannot be walled off".into());
        }
    }
    let arguments = ["python3", "-I", "-S", "-B", "-c", RUNNER].map(CString::new);
    let arguments: Vec<CString> = arguments.into_iter().collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    let mut pointers: Vec<*const libc::c_char> = arguments.iter().map(|text| text.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let environment = [c"HOME=/nonexistent".as_ptr(), c"LC_ALL=C.UTF-8".as_ptr(), std::ptr::null()];
    let python = path(&settings.python)?;
    let programs = if settings.walled { filters(walls.namespaces)? } else { Vec::new() };
    walls.seccomp = !programs.is_empty();
    report(&Ok(walls));
    // SAFETY: plain system call; the descriptors are open.
    unsafe { check(libc::dup2(1, 2).into(), "dup2")? };
    for program in &programs {
        seccompiler::apply_filter(program).map_err(|error| tell(format!("seccomp: {error}")))?;
    }
    // SAFETY: the arrays end in a null pointer and live on.
    unsafe { libc::execve(python.as_ptr(), pointers.as_ptr(), environment.as_ptr()) };
    Err(tell(format!("{}: {}", settings.python.display(), Error::last_os_error())))
}

/// For what goes wrong after standard error was given away.
fn tell(problem: String) -> String {
    // SAFETY: descriptor 3 is open, and nobody else's.
    let mut channel = unsafe { std::fs::File::from_raw_fd(3) };
    let _ = write!(channel, "OSError:0:the child could not start: {problem}");
    problem
}

/// Network, IPC, mounts, processes and names of its own; without rights by way of a user namespace. Whether the kernel allows it.
fn namespaces(root: bool) -> bool {
    let flags = libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWPID;
    // SAFETY: plain system calls.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let flags = if root { flags } else { flags | libc::CLONE_NEWUSER };
    // SAFETY: plain system call.
    if unsafe { libc::unshare(flags) } != 0 {
        return false;
    }
    if !root {
        let maps =
            [("setgroups", "deny".to_owned()), ("uid_map", format!("{uid} {uid} 1")), ("gid_map", format!("{gid} {gid} 1"))];
        return maps.iter().all(|(file, text)| std::fs::write(format!("/proc/self/{file}"), text).is_ok());
    }
    true
}

fn mount(from: Option<&Path>, to: &Path, kind: Option<&str>, flags: libc::c_ulong, options: Option<&str>) -> Result<(), String> {
    let text = |text: &str| CString::new(text).map_err(|error| error.to_string());
    let from = from.map(path).transpose()?;
    let (to_c, kind, options) = (path(to)?, kind.map(text).transpose()?, options.map(text).transpose()?);
    let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
    // SAFETY: all strings live on.
    let result = unsafe { libc::mount(pointer(&from), to_c.as_ptr(), pointer(&kind), flags, pointer(&options).cast()) };
    check(result.into(), &format!("mount {}", to.display())).map(|_| ())
}

/// A root folder with nothing but what Python needs, read-only, and a small folder in memory to work in. Gives that folder.
fn new_root(settings: &Settings) -> Result<PathBuf, String> {
    let base = &settings.dir;
    let io = |error: Error| error.to_string();
    mount(None, Path::new("/"), None, libc::MS_REC | libc::MS_PRIVATE, None)?;
    mount(None, base, Some("tmpfs"), libc::MS_NOSUID | libc::MS_NODEV, Some("mode=0755,size=1m"))?;
    let inside = |path: &Path| base.join(path.strip_prefix("/").unwrap_or(path));
    let mut sources: Vec<&Path> = SYSTEM.iter().map(Path::new).chain(settings.trees.iter().map(PathBuf::as_path)).collect();
    // What is in another's folder is there already.
    sources.sort();
    sources.dedup();
    let all = sources.clone();
    sources.retain(|source| {
        source.exists() && *source != Path::new("/") && !all.iter().any(|other| other != source && source.starts_with(other))
    });
    // SAFETY: plain system call. The folders made here are for all to pass.
    unsafe { libc::umask(0o022) };
    for source in sources.into_iter().chain(DEVICES.iter().map(Path::new)) {
        let to = inside(source);
        if let Ok(target) = std::fs::read_link(source) {
            // Debian's /lib is a link to usr/lib.
            std::os::unix::fs::symlink(target, to).map_err(io)?;
            continue;
        }
        if source.is_dir() {
            std::fs::create_dir_all(&to).map_err(io)?;
        } else {
            std::fs::create_dir_all(to.parent().unwrap_or(base)).map_err(io)?;
            std::fs::write(&to, "").map_err(io)?;
        }
        mount(Some(source), &to, None, libc::MS_BIND | libc::MS_REC, None)?;
        // Flags of a mount that a user namespace inherits cannot be taken away; where it had others, it stays as it is.
        let _ = mount(None, &to, None, libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | libc::MS_NOSUID, None);
    }
    let work = Path::new("/tmp");
    std::fs::create_dir_all(inside(work)).map_err(io)?;
    let options = format!("mode=0777,size={},nr_inodes=4096", settings.limits.file.saturating_mul(4));
    mount(None, &inside(work), Some("tmpfs"), libc::MS_NOSUID | libc::MS_NODEV, Some(&options))?;
    mount(None, base, None, libc::MS_REMOUNT | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV, Some("mode=0755,size=1m"))?;
    std::env::set_current_dir(base).map_err(io)?;
    // SAFETY: both paths are ".", which pivot_root allows: the old root lies under the new one, and goes.
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()), "pivot_root")?;
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH).into(), "umount2")?;
        libc::umask(0o077);
    }
    Ok(work.into())
}

/// A namespace of processes begins with a child: that goes on, we wait for it and end as it ended.
fn fork_into() -> Result<(), String> {
    // SAFETY: the process has one thread that holds locks, this one.
    let child = check(unsafe { libc::fork() }.into(), "fork")? as libc::pid_t;
    if child == 0 {
        // SAFETY: plain system call.
        return check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }.into(), "prctl").map(|_| ());
    }
    let mut status = 0;
    // SAFETY: `status` lives on. What we hold open the parent would wait for.
    unsafe {
        libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0);
        while libc::waitpid(child, &raw mut status, 0) < 0 && Error::last_os_error().raw_os_error() == Some(libc::EINTR) {}
        let code = if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
        libc::_exit(code)
    }
}

/// The limit on threads does not hold for root. A user namespace of its own makes it count this program's alone: whether there is one.
fn become_nobody(dir: &Path) -> Result<bool, String> {
    let dir = path(dir)?;
    // SAFETY: plain system calls; the string lives on. That `chown` fails is harmless: a folder in memory is open to all.
    unsafe {
        libc::chown(dir.as_ptr(), NOBODY, NOBODY);
        check(libc::setgroups(0, std::ptr::null()).into(), "setgroups")?;
        check(libc::setresgid(NOBODY, NOBODY, NOBODY).into(), "setresgid")?;
        check(libc::setresuid(NOBODY, NOBODY, NOBODY).into(), "setresuid")?;
        let own_user = libc::unshare(libc::CLONE_NEWUSER) == 0;
        // Cleared by the change of user.
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into(), "prctl").map(|_| own_user)
    }
}

fn limits(settings: &Settings, own_user: bool) -> Result<(), String> {
    let limits = &settings.limits;
    let seconds = limits.seconds.clamp(0.0, 1e6).ceil() as u64 + 1;
    let all = [
        (libc::RLIMIT_AS, limits.memory),
        (libc::RLIMIT_CPU, seconds),
        (libc::RLIMIT_FSIZE, limits.file),
        (libc::RLIMIT_NOFILE, 64),
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_MEMLOCK, 0),
        (libc::RLIMIT_NPROC, limits.threads),
    ];
    for (kind, value) in all {
        // Else it counts all processes of the user, and would fail for what others do. Memory then bounds threads: each takes 8 MiB of
        // addresses for its stack.
        if kind == libc::RLIMIT_NPROC && !own_user {
            continue;
        }
        let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
        // SAFETY: `limit` lives on.
        check(unsafe { libc::setrlimit(kind, &raw const limit) }.into(), "setrlimit")?;
    }
    Ok(())
}

/// Reading what Python needs, writing in `dir`; no network, no signals outward. `None` for a kernel without it.
fn landlock(settings: &Settings, dir: &Path) -> Result<Option<String>, landlock::RulesetError> {
    let abi = ABI::V6;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?;
    let read =
        SYSTEM.iter().map(Path::new).chain(settings.trees.iter().map(PathBuf::as_path)).filter(|path| *path != Path::new("/"));
    for path in read.chain([settings.python.as_path()]) {
        let rights = if path.is_dir() { AccessFs::from_read(abi) } else { AccessFs::ReadFile | AccessFs::Execute };
        if let Ok(fd) = PathFd::new(path) {
            ruleset = ruleset.add_rule(PathBeneath::new(fd, rights))?;
        }
    }
    for device in DEVICES {
        if let Ok(fd) = PathFd::new(device) {
            ruleset = ruleset.add_rule(PathBeneath::new(fd, AccessFs::ReadFile | AccessFs::WriteFile))?;
        }
    }
    if let Ok(fd) = PathFd::new(dir) {
        ruleset = ruleset.add_rule(PathBeneath::new(fd, AccessFs::from_all(abi) & !AccessFs::Execute))?;
    }
    Ok(match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Some("all".into()),
        RulesetStatus::PartiallyEnforced => Some("in part".into()),
        RulesetStatus::NotEnforced => None,
    })
}

/// Denied system calls. Processes cannot be started, so that one group is all there is to kill; threads can. Where files outside can be
/// named (no `root` folder of its own), their rights and times cannot be changed, of which Landlock knows nothing.
fn filters(root: bool) -> Result<Vec<BpfProgram>, String> {
    let text = |error: seccompiler::BackendError| error.to_string();
    let arch = std::env::consts::ARCH.try_into().map_err(text)?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().chain(RIGHTS.iter().filter(|_| !root)).map(|&call| (call, Vec::new())).collect();
    // The same calls by their numbers in the x32 interface, which some kernels have; 512 and the following are its own.
    if cfg!(target_arch = "x86_64") {
        let theirs: Vec<i64> = rules.keys().copied().chain(512..548).map(|call| call | 0x4000_0000).collect();
        rules.extend(theirs.into_iter().map(|call| (call, Vec::new())));
    }
    let condition = |arg, op, value| {
        SeccompCondition::new(arg, SeccompCmpArgLen::Qword, op, value).and_then(|condition| SeccompRule::new(vec![condition]))
    };
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![condition(0, SeccompCmpOp::MaskedEq(thread), 0).map_err(text)?]);
    // SAFETY: no arguments, no memory. A process may end itself.
    let own = unsafe { libc::getpid() } as u64;
    rules.insert(libc::SYS_tgkill, vec![condition(0, SeccompCmpOp::Ne, own).map_err(text)?]);
    let deny = |rules, errno: i32| -> Result<BpfProgram, String> {
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch)
            .and_then(TryInto::try_into)
            .map_err(text)
    };
    // The C library takes `clone` where there is no `clone3`, whose flags a filter cannot see.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok(vec![deny(rules, libc::EPERM)?, deny(clone3, libc::ENOSYS)?])
}

const DENIED: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    // Leaving the group that is killed.
    libc::SYS_setsid,
    libc::SYS_setpgid,
    // Others.
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pidfd_getfd,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_prlimit64,
    libc::SYS_setpriority,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setscheduler,
    // Network.
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fsconfig,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // The kernel's wide doors.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_personality,
    libc::SYS_memfd_create,
    libc::SYS_shmget,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
];

const RIGHTS: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
];
