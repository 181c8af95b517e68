//! The name that people know a program by: `gunicorn` and not `python3.11`, `redis-server` and not `redis-check-rdb`.
//!
//! It comes from the command line, which a process may rewrite: a label for people, and never an identity.

use crate::text::sanitize;

/// Longest name, bytes.
const MAX_NAME: usize = 64;

/// How an interpreter's command line leads to the program that it runs.
struct Interpreter {
    /// Its name, without the version.
    name: &'static str,
    /// Options whose value is the next argument.
    with_value: &'static [&'static str],
    /// Options whose next argument names the program.
    program: &'static [&'static str],
    /// Options that give the code itself, or a program of the interpreter's own: there is no other name.
    inline: &'static [&'static str],
    /// Subcommands before the program.
    subcommands: &'static [&'static str],
}

const fn interpreter(name: &'static str) -> Interpreter {
    Interpreter { name, with_value: &[], program: &[], inline: &[], subcommands: &[] }
}

const PYTHON: Interpreter = Interpreter {
    with_value: &["-W", "-X", "-Q", "--check-hash-based-pycs"],
    program: &["-m"],
    inline: &["-c"],
    ..interpreter("python")
};
const SHELL: Interpreter = Interpreter {
    with_value: &["-o", "+o", "-O", "--rcfile", "--init-file"],
    inline: &["-c", "-s"],
    ..interpreter("sh")
};

const INTERPRETERS: &[Interpreter] = &[
    PYTHON,
    Interpreter { name: "pypy", ..PYTHON },
    SHELL,
    Interpreter { name: "bash", ..SHELL },
    Interpreter { name: "dash", ..SHELL },
    Interpreter { name: "ash", ..SHELL },
    Interpreter { name: "zsh", ..SHELL },
    Interpreter { name: "ksh", ..SHELL },
    NODE,
    Interpreter { name: "nodejs", ..NODE },
    Interpreter {
        with_value: &[
            "-cp",
            "-classpath",
            "--class-path",
            "-p",
            "--module-path",
            "--upgrade-module-path",
            "--add-modules",
            "--add-opens",
            "--add-exports",
            "--add-reads",
            "--source",
        ],
        program: &["-jar", "-m", "--module"],
        ..interpreter("java")
    },
    Interpreter { with_value: &["-r", "-I", "-C", "-E"], inline: &["-e"], ..interpreter("ruby") },
    Interpreter { with_value: &["-I", "-M", "-m"], inline: &["-e", "-E"], ..interpreter("perl") },
    Interpreter { with_value: &["-d", "-c", "-z"], program: &["-f"], inline: &["-r", "-S"], ..interpreter("php") },
    Interpreter {
        with_value: &["--fx-version", "--depsfile", "--runtimeconfig", "--roll-forward"],
        subcommands: &["exec"],
        ..interpreter("dotnet")
    },
    Interpreter {
        with_value: &["-c", "--config", "--import-map"],
        inline: &["eval", "repl"],
        subcommands: &["run", "serve"],
        ..interpreter("deno")
    },
    Interpreter {
        with_value: &["-r", "--preload", "-c"],
        inline: &["-e"],
        subcommands: &["run"],
        ..interpreter("bun")
    },
    Interpreter { with_value: &["-l"], inline: &["-e"], ..interpreter("lua") },
    Interpreter { inline: &["-e"], ..interpreter("Rscript") },
];

const NODE: Interpreter = Interpreter {
    with_value: &[
        "-r",
        "--require",
        "--import",
        "--loader",
        "--experimental-loader",
        "-C",
        "--conditions",
        "--env-file",
    ],
    inline: &["-e", "--eval", "-p", "--print", "-i"],
    ..interpreter("node")
};

/// The program's name by its arguments and the path of its executable; `None` where these give no better one than the
/// kernel's.
pub fn name(arguments: &[String], executable_path: Option<&str>) -> Option<String> {
    let first = arguments.first()?;
    let executable = executable_path.map(base_name).unwrap_or_default();
    // A title, which some servers write over their arguments: `nginx: worker process`, `redis-server *:6379`.
    let invoked = match base_name(first) {
        whole if whole == executable => whole,
        _ => base_name(first.split([' ', '\t']).next().unwrap_or_default()),
    };
    let invoked = invoked.strip_suffix(':').unwrap_or(invoked);
    // A login shell is `-bash`.
    let invoked = invoked.strip_prefix('-').unwrap_or(invoked);
    let rest = arguments.get(1..).unwrap_or_default();
    let name = if is_loader(executable) && is_loader(invoked) {
        operand(&LOADER, rest).map(base_name)
    } else if executable == "busybox" && invoked == "busybox" {
        // Only its own options begin with a hyphen: an applet follows.
        rest.first().map(String::as_str).filter(|applet| !applet.starts_with('-')).or(Some(invoked))
    } else {
        let known = INTERPRETERS.iter().find(|known| is_version_of(invoked, known.name));
        known.and_then(|known| run_by(known, rest)).or(Some(invoked))
    };
    let name = name.filter(|name| name.chars().any(char::is_alphanumeric))?;
    Some(sanitize(name.as_bytes(), MAX_NAME))
}

const LOADER: Interpreter = Interpreter {
    with_value: &["--library-path", "--preload", "--argv0", "--audit", "--inhibit-rpath", "--glibc-hwcaps-prepend"],
    ..interpreter("ld")
};

fn is_loader(name: &str) -> bool {
    name.starts_with("ld-linux") || name.starts_with("ld-musl") || name.starts_with("ld.so")
}

/// What the interpreter runs, if its arguments name it.
fn run_by<'a>(interpreter: &Interpreter, arguments: &'a [String]) -> Option<&'a str> {
    let program = operand(interpreter, arguments)?;
    if interpreter.name != "java" {
        // `python -m shop.__main__`, `python shop/__main__.py`: the package.
        let path = program.strip_suffix(".__main__").or(program.strip_suffix("/__main__.py")).unwrap_or(program);
        return Some(base_name(path));
    }
    if program.ends_with(".jar") || program.ends_with(".java") {
        return Some(base_name(program));
    }
    // `module/package.Main`: the class, as `jps` has it.
    program.rsplit(['/', '.']).next()
}

/// The first argument that is no option, or the value of the option that names the program.
fn operand<'a>(interpreter: &Interpreter, arguments: &'a [String]) -> Option<&'a str> {
    let mut arguments = arguments.iter().map(String::as_str);
    let mut may_have_subcommand = true;
    while let Some(argument) = arguments.next() {
        if interpreter.inline.contains(&argument) || argument == "-" {
            return None;
        }
        if interpreter.program.contains(&argument) {
            return arguments.next();
        }
        if interpreter.with_value.contains(&argument) {
            arguments.next();
        } else if argument == "--" {
            return arguments.next();
        } else if may_have_subcommand && interpreter.subcommands.contains(&argument) {
            may_have_subcommand = false;
        } else if interpreter.inline.iter().any(|option| is_joined(argument, option)) {
            // `sh -ec CODE`, `perl -ne CODE`.
            return None;
        } else if !argument.starts_with(['-', '+', '@']) && !argument.is_empty() {
            return Some(argument);
        }
    }
    None
}

/// Whether the argument joins single-letter options, this one the last of them: `-ec` for `-c`.
fn is_joined(argument: &str, option: &str) -> bool {
    let (Some(letters), Some(letter)) = (argument.strip_prefix('-'), option.strip_prefix('-')) else { return false };
    letter.len() == 1
        && letters.len() > 1
        && letters.ends_with(letter)
        && letters.bytes().all(|b| b.is_ascii_lowercase())
}

/// `python3.11` is a version of `python`.
fn is_version_of(name: &str, interpreter: &str) -> bool {
    let version = name.strip_prefix(interpreter);
    version.is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.' || byte == b'-'))
}

fn base_name(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(executable: &str, command_line: &[&str]) -> String {
        let arguments: Vec<String> = command_line.iter().map(|argument| (*argument).to_owned()).collect();
        name(&arguments, Some(executable)).unwrap_or_default()
    }

    #[test]
    fn programs_are_named_as_people_know_them() {
        const PYTHON: &str = "/usr/bin/python3.11";
        const NODE: &str = "/usr/bin/node";
        const JAVA: &str = "/usr/lib/jvm/java-17/bin/java";
        let table: &[(&str, &[&str], &str)] = &[
            // Plain programs, symbolic links, titles.
            ("/usr/sbin/nginx", &["nginx: worker process"], "nginx"),
            ("/usr/bin/redis-check-rdb", &["/usr/bin/redis-server 127.0.0.1:6379"], "redis-server"),
            ("/usr/bin/redis-check-rdb", &["redis-server", "*:6379"], "redis-server"),
            ("/usr/lib/postgresql/15/bin/postgres", &["postgres: 15/main: app shop 10.0.0.7(51514) idle"], "postgres"),
            ("/usr/sbin/php-fpm8.2", &["php-fpm: pool www"], "php-fpm"),
            ("/usr/sbin/sshd", &["sshd: root@pts/0"], "sshd"),
            ("/opt/My App/my app", &["/opt/My App/my app", "--port", "1"], "my app"),
            ("/usr/bin/bash", &["-bash"], "bash"),
            ("/usr/bin/busybox", &["busybox", "httpd", "-f"], "httpd"),
            ("/usr/bin/busybox", &["/bin/nc", "-l"], "nc"),
            ("/usr/bin/busybox", &["busybox"], "busybox"),
            (
                "/usr/lib/ld-linux-x86-64.so.2",
                &["/lib64/ld-linux-x86-64.so.2", "--library-path", "/x", "/opt/app"],
                "app",
            ),
            // Python.
            (PYTHON, &["/usr/bin/python3", "/usr/local/bin/gunicorn", "-w", "4", "app:app"], "gunicorn"),
            (PYTHON, &["gunicorn: master [app:app]"], "gunicorn"),
            (PYTHON, &["/usr/bin/python3.11", "-u", "-W", "error", "server.py"], "server.py"),
            (PYTHON, &["python3", "-m", "http.server", "8000"], "http.server"),
            (PYTHON, &["python3", "-X", "dev", "-m", "uvicorn", "app:app"], "uvicorn"),
            (PYTHON, &["python3", "/srv/shop/__main__.py"], "shop"),
            (PYTHON, &["python3", "-c", "import socket"], "python3"),
            (PYTHON, &["python3", "-"], "python3"),
            (PYTHON, &["python3"], "python3"),
            ("/usr/bin/pypy3", &["pypy3", "app.py"], "app.py"),
            // Node and its like.
            (NODE, &["node", "--inspect=0.0.0.0:9229", "-r", "./tracing.js", "/srv/server.js"], "server.js"),
            (NODE, &["node", "-e", "require('http')"], "node"),
            (NODE, &["npm run start"], "npm"),
            ("/usr/bin/deno", &["deno", "run", "--allow-net", "main.ts"], "main.ts"),
            ("/usr/bin/bun", &["bun", "run", "index.ts"], "index.ts"),
            // Java.
            (JAVA, &["java", "-Xmx1g", "-javaagent:/x.jar", "-jar", "/srv/shop.jar", "--port=1"], "shop.jar"),
            (
                JAVA,
                &["/usr/bin/java", "-cp", "a.jar:b.jar", "-Dx=y", "org.apache.kafka.Kafka", "server.properties"],
                "Kafka",
            ),
            (JAVA, &["java", "-p", "mods", "-m", "shop/com.example.Main"], "Main"),
            (JAVA, &["java", "Server.java"], "Server.java"),
            (JAVA, &["java", "-version"], "java"),
            // Ruby, Perl, PHP, .NET.
            ("/usr/bin/ruby3.1", &["ruby", "-I", "lib", "-rbundler/setup", "bin/rails", "server"], "rails"),
            ("/usr/bin/ruby3.1", &["puma 6.0.0 (tcp://0.0.0.0:3000) [shop]"], "puma"),
            ("/usr/bin/perl", &["/usr/bin/perl", "-w", "/usr/bin/munin-node"], "munin-node"),
            ("/usr/bin/perl", &["perl", "-ne", "print"], "perl"),
            ("/usr/bin/php8.2", &["php", "-d", "x=1", "artisan", "serve"], "artisan"),
            ("/usr/bin/php8.2", &["php", "-S", "0.0.0.0:80"], "php"),
            ("/usr/share/dotnet/dotnet", &["dotnet", "Shop.dll"], "Shop.dll"),
            // Shells.
            ("/usr/bin/dash", &["sh", "-c", "nc -l 80"], "sh"),
            ("/usr/bin/dash", &["/bin/sh", "-ec", "nc -l 80"], "sh"),
            ("/usr/bin/bash", &["bash", "-x", "-o", "pipefail", "/srv/run.sh"], "run.sh"),
            // A name that only begins like an interpreter's.
            ("/usr/bin/nodemon", &["nodemon", "x.js"], "nodemon"),
            ("/usr/sbin/php-fpm8.2", &["php-fpm8.2", "-F"], "php-fpm8.2"),
            ("/usr/bin/shiny", &["shiny", "x"], "shiny"),
        ];
        for (executable, command_line, expected) in table {
            assert_eq!(of(executable, command_line), *expected, "{command_line:?}");
        }
    }

    #[test]
    fn where_the_arguments_say_nothing_the_kernels_name_stands() {
        assert_eq!(name(&[], Some("/usr/bin/x")), None);
        for empty in ["", "/", "-", ":", "  ", "..."] {
            assert_eq!(of("/usr/bin/x", &[empty]), "", "{empty:?}");
        }
    }

    proptest! {
        #[test]
        fn any_arguments_give_a_short_clean_name(arguments: Vec<String>, path: Option<String>) {
            if let Some(name) = name(&arguments, path.as_deref()) {
                prop_assert!(!name.is_empty() && !name.chars().any(char::is_control), "{:?}", name);
            }
        }
    }
}
