//! Further processes in a container: what they join, what they get, and what they leave behind.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic"
)]

mod harness;

use std::fs;
use std::time::Instant;

use harness::{Agent, DEADLINE, execution, text, user};
use kata_agent_proto::agent::{ExecProcessRequest, TtyWinResizeRequest};
use kata_agent_proto::{CallError, FailureKind, oci};

fn kind<T: std::fmt::Debug>(result: Result<T, CallError>) -> FailureKind {
    result
        .expect_err("a failure")
        .kind()
        .expect("a failure with a kind")
}

/// Executes what the request says; its status and output.
async fn run(agent: &Agent, mut request: ExecProcessRequest) -> Result<(i32, String), CallError> {
    let (port, stdout) = agent.stream();
    request.stdout_port = port;
    let (id, exec_id) = (request.container_id.clone(), request.exec_id.clone());
    agent.client.exec_process(request).await?;
    let (status, stdout) = tokio::join!(agent.wait(&id, &exec_id), text(stdout));
    Ok((status?, stdout))
}

/// A request whose process is changed.
fn changed(exec_id: &str, args: &[&str], change: impl FnOnce(&mut oci::Process)) -> ExecProcessRequest {
    let mut request = execution("c1", exec_id, args);
    change(request.process.mut_or_insert_default());
    request
}

/// The value of a line of `/proc/<pid>/status`, in single spaces.
fn line(status: &str, name: &str) -> String {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}:")));
    let words = line
        .unwrap_or_else(|| panic!("{name} in {status}"))
        .split_whitespace();
    words.collect::<Vec<_>>().join(" ")
}

/// The agent proper, whose parent waits for it.
fn proper(agent: &Agent) -> String {
    let outer = agent.process.id();
    let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap();
    children.split_whitespace().next().unwrap().to_owned()
}

/// Conformance: semantics 8
#[tokio::test]
async fn a_process_is_in_the_namespaces_and_the_cgroup_of_its_container() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let links = |of: &str| format!("cd /proc/{of}/ns && ls -l mnt pid uts ipc net cgroup pid_for_children");
    let names = |listing: &str| -> Vec<String> {
        let targets = listing
            .lines()
            .filter_map(|line| Some(line.rsplit_once("-> ")?.1.to_owned()));
        targets.collect()
    };
    let (_, init) = agent.exec("c1", "e1", &["sh", "-c", &links("1")]).await.unwrap();
    let (_, own) = agent
        .exec("c1", "e2", &["sh", "-c", &links("self")])
        .await
        .unwrap();
    assert_eq!(names(&init).len(), 7, "{init}");
    assert_eq!(names(&init), names(&own));
    for file in ["/proc/1/cgroup", "/proc/self/cgroup"] {
        let exec_id = file.replace('/', "-");
        // In the container's cgroup namespace its own cgroup is the root. A machine may have more hierarchies.
        let (_, cgroup) = agent.exec("c1", &exec_id[1..], &["cat", file]).await.unwrap();
        assert_eq!(cgroup.lines().last(), Some("0::/"), "{file}");
    }
    let pid = proper(&agent);
    let agents = |name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
    assert_eq!(agents("pid"), agents("pid_for_children"), "the agent is back");
    assert_eq!(
        fs::read_dir(format!("/proc/{pid}/task")).unwrap().count(),
        1,
        "forking needs it to be the only thread"
    );
}

#[tokio::test]
async fn what_cannot_be_executed_is_told_by_kind() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    for (args, expected) in [
        (["nosuch"], FailureKind::NotFound),
        (["/data/plain/x"], FailureKind::NotFound),
        (["/data/plain"], FailureKind::NotExecutable),
        (["/data"], FailureKind::NotExecutable),
        (["/data/broken"], FailureKind::NotExecutable),
    ] {
        let failed = agent.exec("c1", "e", &args).await;
        assert_eq!(kind(failed), expected, "{args:?}");
    }
    for cwd in ["/nosuch", "/data/plain", "/proc/self/fd/5"] {
        let request = changed("e", &["true"], |process| process.cwd = cwd.into());
        assert_eq!(
            kind(run(&agent, request).await),
            FailureKind::NoSuchDirectory,
            "{cwd}"
        );
    }
    for (name, group, expected) in [
        ("nobody", "", FailureKind::NoSuchUser),
        ("web", "nogroup", FailureKind::NoSuchGroup),
    ] {
        let mut request = execution("c1", "e", &["true"]);
        request.string_user = Some(user(name, group)).into();
        assert_eq!(kind(run(&agent, request).await), expected, "{name} {group}");
    }
    let request = changed("e", &["true"], |process| {
        process.rlimits = vec![oci::POSIXRlimit {
            type_: "RLIMIT_FUN".into(),
            ..Default::default()
        }];
    });
    assert_eq!(kind(run(&agent, request).await), FailureKind::Invalid);
    assert_eq!(agent.exec("c1", "e", &["true"]).await.unwrap().0, 0);
}

#[tokio::test]
async fn a_process_has_the_identity_and_the_capabilities_that_were_asked_for() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let kill = || vec!["CAP_KILL".to_owned()];
    let sets = oci::LinuxCapabilities {
        bounding: vec!["CAP_KILL".into(), "CAP_CHOWN".into()],
        effective: kill(),
        permitted: kill(),
        inheritable: kill(),
        ambient: kill(),
        ..Default::default()
    };
    let mut request = changed("web", &["cat", "/proc/self/status"], |process| {
        process.capabilities = Some(sets.clone()).into();
    });
    request.string_user = Some(user("web", "")).into();
    let (_, status) = run(&agent, request).await.unwrap();
    for (name, value) in [
        ("Uid", "33 33 33 33"),
        ("Gid", "34 34 34 34"),
        ("Groups", "29"),
        ("CapInh", "0000000000000020"),
        ("CapPrm", "0000000000000020"),
        ("CapEff", "0000000000000020"),
        ("CapBnd", "0000000000000021"),
        ("CapAmb", "0000000000000020"),
        ("NoNewPrivs", "1"),
        ("SigBlk", "0000000000000000"),
        ("SigIgn", "0000000000000000"),
    ] {
        assert_eq!(line(&status, name), value, "{name}");
    }
    let request = changed("plain", &["cat", "/proc/self/status"], |process| {
        process.user = Some(oci::User {
            uid: 4711,
            gid: 12,
            additional_gids: vec![5, 6],
            ..Default::default()
        })
        .into();
        process.no_new_privileges = false;
    });
    let (_, status) = run(&agent, request).await.unwrap();
    assert_eq!(
        ["Uid", "Gid", "Groups", "CapPrm", "NoNewPrivs"].map(|name| line(&status, name)),
        [
            "4711 4711 4711 4711",
            "12 12 12 12",
            "5 6",
            "0000000000000000",
            "0"
        ]
    );
    let request = changed("ambient", &["true"], |process| {
        let inheritable = Vec::new();
        process.capabilities = Some(oci::LinuxCapabilities { inheritable, ..sets }).into();
    });
    assert_eq!(kind(run(&agent, request).await), FailureKind::Unsupported);
}

#[tokio::test]
async fn a_process_has_its_environment_limits_and_session_and_nothing_else() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let given = ["PATH=/bin", "B=", "A=1 2", "HOME=/x"].map(str::to_owned);
    let request = changed("env", &["env"], |process| process.env = given.to_vec());
    let (_, env) = run(&agent, request).await.unwrap();
    assert_eq!(env, "PATH=/bin\nB=\nA=1 2\nHOME=/x\n");
    let request = changed("home", &["/bin/env"], |process| process.env = Vec::new());
    let (_, env) = run(&agent, request).await.unwrap();
    assert_eq!(env, "HOME=/root\n", "a home is added");

    let (_, fds) = agent.exec("c1", "fds", &["ls", "/proc/self/fd"]).await.unwrap();
    assert_eq!(fds, "0\n1\n2\n3\n", "the last is the directory that is listed");

    let request = changed(
        "limits",
        &["cat", "/proc/self/limits", "/proc/self/oom_score_adj"],
        |process| {
            process.rlimits = vec![oci::POSIXRlimit {
                type_: "RLIMIT_NOFILE".into(),
                soft: 50,
                hard: 60,
                ..Default::default()
            }];
            process.oom_score_adj = 77;
        },
    );
    let (_, limits) = run(&agent, request).await.unwrap();
    assert_eq!(
        line(&limits.replace("Max open files", "files:"), "files"),
        "50 60 files"
    );
    assert!(limits.ends_with("\n77\n"), "{limits}");

    let (_, stat) = agent
        .exec("c1", "stat", &["cat", "/proc/self/stat"])
        .await
        .unwrap();
    let fields: Vec<_> = stat.split(' ').collect();
    assert_eq!((fields[0], fields[0]), (fields[4], fields[5]), "{stat}");
}

#[tokio::test]
async fn processes_end_with_their_container() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let request = execution("c1", "e", &["sleep", "1000"]);
    agent.client.exec_process(request).await.unwrap();
    agent.signal("c1", "c1", 9).await.unwrap();
    assert_eq!(agent.wait("c1", "e").await, Ok(137));
    assert_eq!(
        kind(agent.exec("c1", "f", &["true"]).await),
        FailureKind::NotRunning
    );
}

/// Conformance: semantics 8
#[tokio::test]
async fn a_process_that_meets_the_end_of_its_container_is_killed_or_refused() {
    let Some(agent) = Agent::start().await else { return };
    for round in 0..20 {
        let id = format!("c{round}");
        agent.idle(&id).await;
        let (killed, executed) = tokio::join!(
            agent.signal(&id, &id, 9),
            agent.client.exec_process(execution(&id, "e", &["sleep", "1000"]))
        );
        killed.unwrap();
        match executed {
            Ok(()) => assert_eq!(agent.wait(&id, "e").await, Ok(137)),
            failed => assert_eq!(kind(failed), FailureKind::NotRunning),
        }
        agent.remove(&id).await.unwrap();
    }
}

/// Descriptors of the agent.
fn descriptors(pid: &str) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn zombies(pid: &str) -> usize {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let is_zombie =
        |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    children.split_whitespace().filter(|pid| is_zombie(pid)).count()
}

/// Waits until the agent has no more descriptors than before, and no zombie.
async fn nothing_is_left(pid: &str, before: usize) {
    let deadline = Instant::now() + DEADLINE;
    while descriptors(pid) > before || zombies(pid) > 0 {
        assert!(
            Instant::now() < deadline,
            "{before} descriptors, then {}, and {} zombies",
            descriptors(pid),
            zombies(pid)
        );
        tokio::task::yield_now().await;
    }
}

/// Conformance: semantics 4
#[tokio::test]
async fn many_processes_leave_no_descriptor_and_no_zombie() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let pid = proper(&agent);
    assert_eq!(agent.exec("c1", "first", &["true"]).await.unwrap().0, 0);
    let before = descriptors(&pid);
    for round in 0..20 {
        let names: Vec<_> = (0..10).map(|number| format!("e{round}-{number}")).collect();
        let mut running = tokio::task::JoinSet::new();
        for name in names {
            let client = agent.connect();
            running.spawn(async move {
                let program = if name.ends_with('7') { "nosuch" } else { "true" };
                let started = client.exec_process(execution("c1", &name, &[program])).await;
                (name, started)
            });
        }
        while let Some(started) = running.join_next().await {
            match started.unwrap() {
                (name, Ok(())) => assert_eq!(agent.wait("c1", &name).await, Ok(0)),
                (_, failed) => assert_eq!(kind(failed), FailureKind::NotFound),
            }
        }
    }
    nothing_is_left(&pid, before).await;
}

/// Conformance: semantics 4
#[tokio::test]
async fn many_processes_with_terminals_leave_no_descriptor_and_no_zombie() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let pid = proper(&agent);
    let with_terminal = |exec_id: &str| changed(exec_id, &["tty"], |process| process.terminal = true);
    assert_eq!(run(&agent, with_terminal("first")).await.unwrap().0, 0);
    let before = descriptors(&pid);
    for number in 0..40 {
        let ran = run(&agent, with_terminal(&format!("e{number}"))).await.unwrap();
        assert!(ran.0 == 0 && ran.1.starts_with("/dev/pts/"), "{ran:?}");
    }
    nothing_is_left(&pid, before).await;
    let resize = TtyWinResizeRequest {
        container_id: "c1".into(),
        exec_id: "e0".into(),
        row: 30,
        column: 100,
        ..Default::default()
    };
    let resized = agent.client.tty_win_resize(resize).await;
    assert_eq!(
        kind(resized),
        FailureKind::NotRunning,
        "its terminal is gone with it"
    );
}

/// How many ended processes of a container the agent remembers.
const REMEMBERED: usize = 256;

#[tokio::test]
async fn the_last_processes_are_remembered_and_the_eldest_forgotten() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    // Ends first, and nobody asks for its status.
    let unasked = execution("c1", "unasked", &["sh", "-c", "exit 7"]);
    agent.client.exec_process(unasked).await.unwrap();
    let long = execution("c1", "long", &["sleep", "1000"]);
    agent.client.exec_process(long).await.unwrap();
    let count = REMEMBERED + 44;
    for number in 0..count {
        let ran = agent.exec("c1", &format!("e{number}"), &["true"]).await;
        assert_eq!(ran.unwrap().0, 0, "{number}");
    }
    // What was awaited is forgotten first: 44 of them for the last, and one more for the one that was not.
    for number in count - REMEMBERED + 2..count {
        assert_eq!(agent.wait("c1", &format!("e{number}")).await, Ok(0), "{number}");
    }
    for number in 0..count - REMEMBERED {
        let forgotten = agent.wait("c1", &format!("e{number}")).await;
        assert_eq!(forgotten, Err(CallError::NotFound), "{number}");
    }
    assert_eq!(agent.wait("c1", "unasked").await, Ok(7));
    agent.signal("c1", "long", 9).await.unwrap();
    assert_eq!(
        agent.wait("c1", "long").await,
        Ok(137),
        "what runs is not counted"
    );
    // A name that is forgotten is free.
    assert_eq!(agent.exec("c1", "e0", &["true"]).await.unwrap().0, 0);
}
