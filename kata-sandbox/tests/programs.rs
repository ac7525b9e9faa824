//! Real software as people run it: a server by its image's command, clients by exec beside it, its end by the image's
//! stop signal.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;
mod registry;
mod server;

use std::time::Duration;

use bed::{Bed, text};
use kata_sandbox::{Command, Container, MiB, Output, Sandbox};
use registry::Registry;
use server::Server;

/// A database makes its first cluster within it, on a processor that is emulated twice.
const DEADLINE: Duration = Duration::from_secs(300);

/// A container of an image of the tests, from a registry; nothing where there are no images.
fn container(bed: &Bed, name: &str, memory: MiB) -> Option<Container> {
    let image = Registry::start()?.image(&format!("programs/{name}-{}", std::process::id()), name);
    Some(bed.of_image(image).memory(memory))
}

/// Runs a command beside the container's own; it must succeed.
async fn exec(sandbox: &Sandbox, command: Command) -> Output {
    let output = sandbox
        .exec(command.clone())
        .await
        .unwrap()
        .output()
        .await
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stdout}\n{stderr}",
        output.status
    );
    output
}

async fn run(sandbox: &Sandbox, words: &[&str]) -> String {
    text(&exec(sandbox, Command::new(words[0]).args(words[1..].iter().copied())).await)
}

/// What a server in the container answers to a request for `/`.
async fn get(sandbox: &Sandbox, port: u16) -> String {
    let script =
        format!("exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3");
    run(sandbox, &["bash", "-c", &script]).await
}

/// Threads, modules that are libraries, a file, a process, a status.
const PYTHON: &str = r#"
import json, queue, sqlite3, subprocess, sys, threading
done = queue.Queue()
threads = [threading.Thread(target=lambda n=n: done.put(n * n)) for n in range(20)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
database = sqlite3.connect("/tmp/squares.db")
database.execute("create table squares (n integer)")
database.executemany("insert into squares values (?)", [(done.get(),) for _ in threads])
database.commit()
[(total,)] = sqlite3.connect("/tmp/squares.db").execute("select sum(n) from squares")
child = subprocess.run([sys.executable, "-c", "import sys; sys.exit(len(sys.stdin.read()))"], input=b"three")
print(json.dumps({"total": total, "child": child.returncode}))
sys.exit(7)
"#;

/// A server and its client on one event loop, and a thread beside it.
const NODE: &str = r#"
const http = require("http"), { Worker } = require("worker_threads");
const server = http.createServer((request, response) => response.end("asked for " + request.url));
server.listen(0, () => {
  http.get({ port: server.address().port, path: "/page" }, (response) => {
    response.on("data", (data) => console.log(response.statusCode, String(data)));
    response.on("end", () => {
      const worker = new Worker("require('worker_threads').parentPort.postMessage(6 * 7)", { eval: true });
      worker.on("message", (answer) => { console.log(answer); process.exit(3); });
    });
  });
});
"#;

on_every_backend! {
    within crate::DEADLINE;

    async fn python_has_threads_a_database_and_children(bed: Bed) {
        let Some(container) = container(&bed, "python", MiB(192)) else { return };
        let output = Sandbox::run(container.args(["python3", "-c", PYTHON])).await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(text(&output), r#"{"total": 2470, "child": 5}"#, "{stderr}");
        assert_eq!(output.status.code(), 7);
    }

    async fn node_serves_and_asks_itself(bed: Bed) {
        let Some(container) = container(&bed, "node", MiB(320)) else { return };
        let output = Sandbox::run(container.args(["node", "-e", NODE])).await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(text(&output), "200 asked for /page\n42", "{stderr}");
        assert_eq!(output.status.code(), 3);
    }

    async fn redis_serves_is_measured_and_keeps_its_data(bed: Bed) {
        let Some(container) = container(&bed, "redis", MiB(256)) else { return };
        let disk = format!("redis-{}-{}", bed.name, std::process::id());
        let container = container.kept_disk(&disk, MiB(64));
        let sandbox = Sandbox::boot(container.clone()).await.unwrap();
        let mut server = Server::start(&sandbox).await;
        server.says("Ready to accept connections").await;
        assert_eq!(run(&sandbox, &["redis-cli", "ping"]).await, "PONG");
        assert_eq!(run(&sandbox, &["redis-cli", "set", "answer", "42"]).await, "OK");
        let measured = run(&sandbox, &["redis-benchmark", "-n", "1000", "-c", "10", "-t", "set,get", "-q"]).await;
        for command in ["SET: ", "GET: "] {
            assert!(measured.contains(command) && measured.contains("requests per second"), "{measured}");
        }
        assert_eq!(run(&sandbox, &["stat", "-c", "%U", "/proc/1"]).await, "redis");
        let (status, said) = server.stop().await;
        assert!(status.success() && said.contains("DB saved on disk"), "{status}\n{said}");
        sandbox.stop().await.unwrap();

        let sandbox = Sandbox::boot(container).await.unwrap();
        let mut server = Server::start(&sandbox).await;
        server.says("Ready to accept connections").await;
        assert_eq!(run(&sandbox, &["redis-cli", "get", "answer"]).await, "42");
        let (status, said) = server.stop().await;
        assert!(status.success(), "{status}\n{said}");
        sandbox.stop().await.unwrap();
        let store = kata_image::Store::open(kata_image::Store::default_directory().unwrap()).unwrap();
        store.remove_kept(&disk).unwrap();
    }

    async fn nginx_serves_reloads_and_stops(bed: Bed) {
        let Some(container) = container(&bed, "nginx", MiB(192)) else { return };
        let sandbox = Sandbox::boot(container).await.unwrap();
        let mut server = Server::start(&sandbox).await;
        server.says("start worker process ").await;
        let page = get(&sandbox, 80).await;
        assert!(page.starts_with("HTTP/1.1 200 OK") && page.contains("Welcome to nginx!"), "{page}");
        server.says("\"GET / HTTP/1.0\" 200").await;
        let second = "echo 'server { listen 81; return 200 $pid; }' >/etc/nginx/conf.d/second.conf; nginx -t";
        run(&sandbox, &["sh", "-c", second]).await;
        server.signal(1).await;
        server.says("reconfiguring").await;
        server.says("start worker process ").await;
        let answer = get(&sandbox, 81).await;
        let worker = answer.lines().last().unwrap_or_default();
        assert_eq!(run(&sandbox, &["stat", "-c", "%U", &format!("/proc/{worker}")]).await, "www-data", "{answer}");
        let (status, said) = server.stop().await;
        assert!(status.success() && said.contains("SIGQUIT"), "{status}\n{said}");
        sandbox.stop().await.unwrap();
    }

    async fn postgres_makes_a_cluster_serves_and_shuts_down(bed: Bed) {
        let Some(container) = container(&bed, "postgres", MiB(512)) else { return };
        let sandbox = Sandbox::boot(container).await.unwrap();
        let mut server = Server::start(&sandbox).await;
        server.says("database system is ready to accept connections").await;
        let postgres = |words: &[&str]| Command::new(words[0]).args(words[1..].iter().copied()).user("postgres");
        exec(&sandbox, postgres(&["pgbench", "-i", "-s", "1", "-q"])).await;
        let measured = text(&exec(&sandbox, postgres(&["pgbench", "-c", "2", "-t", "50"])).await);
        assert!(measured.contains("number of transactions actually processed: 100/100"), "{measured}");
        let count = "select (select count(*) from pgbench_history), \
                     (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches)";
        assert_eq!(text(&exec(&sandbox, postgres(&["psql", "-tAc", count])).await), "100|t");
        assert_eq!(run(&sandbox, &["stat", "-c", "%U", "/proc/1"]).await, "postgres");
        let (status, said) = server.stop().await;
        assert!(status.success() && said.contains("database system is shut down"), "{status}\n{said}");
        sandbox.stop().await.unwrap();
    }
}
