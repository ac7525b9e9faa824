//! Which programs there are images of, and what is in them: what a Dockerfile would say.
//!
//! The settings are those of the official images. It must not know how an image is made.

/// A program as an image on the base.
#[derive(Debug)]
pub(super) struct Program {
    /// Name of the image.
    pub(super) name: &'static str,
    /// The distribution's package.
    pub(super) package: &'static str,
    /// Files that packages bring and the image does without (dpkg(1), `--path-exclude`).
    pub(super) without: &'static [&'static str],
    /// Lines of a shell that run before packages are installed; `$1` is the root of the image.
    pub(super) before: &'static str,
    /// Lines of a shell that run in the image afterwards.
    pub(super) after: &'static str,
    /// The script that the command goes through, if it does.
    pub(super) entrypoint: Option<&'static str>,
    pub(super) cmd: &'static [&'static str],
    pub(super) env: &'static [(&'static str, &'static str)],
    pub(super) working_dir: Option<&'static str>,
    pub(super) port: Option<&'static str>,
    pub(super) volume: Option<&'static str>,
    pub(super) stop_signal: Option<&'static str>,
}

/// A program that its package alone describes.
const PLAIN: Program = Program {
    name: "",
    package: "",
    without: &[],
    before: "",
    after: "",
    entrypoint: None,
    cmd: &[],
    env: &[],
    working_dir: None,
    port: None,
    volume: None,
    stop_signal: None,
};

/// The one whose layer takes longest to make stands first.
pub(super) const PROGRAMS: &[Program] = &[
    Program {
        name: "postgres",
        package: "postgresql",
        // The compiler of queries is half of all: the server does without it where it is not there.
        without: &[
            "/usr/lib/postgresql/*/lib/bitcode/*",
            "/usr/lib/postgresql/*/lib/llvmjit*",
            "/usr/lib/*/libLLVM*",
            "/usr/lib/*/libz3*",
            "/usr/share/i18n/*",
            "/usr/share/postgresql-common/pgdg/*",
        ],
        // The first start makes the cluster, not the installation.
        before: "mkdir -p \"$1/etc/postgresql-common\"\n\
                 echo 'create_main_cluster = false' >\"$1/etc/postgresql-common/createcluster.conf\"",
        // Programs that the version's directory has alone, and those that a wrapper stands for otherwise.
        after: "ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/",
        entrypoint: Some(include_str!("postgres.sh")),
        cmd: &["postgres"],
        env: &[("LANG", "C.UTF-8"), ("PGDATA", "/var/lib/postgresql/data")],
        port: Some("5432/tcp"),
        volume: Some("/var/lib/postgresql/data"),
        stop_signal: Some("SIGINT"),
        ..PLAIN
    },
    Program {
        name: "node",
        package: "nodejs",
        cmd: &["node"],
        ..PLAIN
    },
    Program {
        name: "python",
        package: "python3",
        cmd: &["python3"],
        env: &[("LANG", "C.UTF-8")],
        ..PLAIN
    },
    Program {
        name: "nginx",
        package: "nginx-light",
        // What it says is the container's output, with its starts and ends.
        after: "ln -sf /dev/stdout /var/log/nginx/access.log\n\
                ln -sf /dev/stderr /var/log/nginx/error.log\n\
                sed -i 's,^error_log .*,error_log /var/log/nginx/error.log notice;,' /etc/nginx/nginx.conf\n\
                grep -q 'error.log notice' /etc/nginx/nginx.conf",
        cmd: &["nginx", "-g", "daemon off;"],
        port: Some("80/tcp"),
        stop_signal: Some("SIGQUIT"),
        ..PLAIN
    },
    Program {
        // What containers of a sandbox are measured against, in the same guest.
        name: "runc",
        package: "runc",
        cmd: &["runc"],
        ..PLAIN
    },
    Program {
        name: "redis",
        package: "redis-server",
        after: "mkdir /data\nchown redis:redis /data",
        entrypoint: Some(include_str!("redis.sh")),
        cmd: &["redis-server"],
        working_dir: Some("/data"),
        port: Some("6379/tcp"),
        volume: Some("/data"),
        ..PLAIN
    },
];
