//! `pg_dump`, `pg_restore` and `psql` as child processes.
//!
//! # Contract
//! - Nothing secret is an argument; the environment holds what libpq needs and nothing of the parent's but `PATH`.
//! - A child is killed when its handle is dropped.
//! - Of standard error only the line that names the error is repeated, and only the part of it that cannot quote a row.

use std::{path::PathBuf, process::Stdio, time::Duration};

use tokio::{
    io::{self, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinHandle,
};

use crate::{api::Reason, runner::Failure, shared::quoted::Quoted};

/// Bytes kept of a child's standard error: the start names the first error, and the first is the cause.
const MAX_STDERR_BYTES: usize = 16 << 10;

/// Where the programs are.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    folder: Option<PathBuf>,
}

/// A version such as `15.14`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// As the program prints it.
    pub text: String,
    /// First number.
    pub major: u32,
}

impl Tools {
    /// Finds the programs in `PATH`.
    pub fn in_path() -> Self {
        Self::default()
    }

    /// Finds the programs in one folder.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self { folder: Some(folder.into()) }
    }

    /// Version of `pg_dump`.
    ///
    /// # Errors
    /// `DumpFailed` if it cannot be run.
    pub async fn version(&self) -> Result<Version, Failure> {
        let mut command = self.command("pg_dump");
        command.arg("--version").stdin(Stdio::null());
        let output = tokio::time::timeout(Duration::from_secs(10), command.output())
            .await
            .map_err(|_| failed("pg_dump --version did not end within 10 s".to_owned()))?
            .map_err(|e| failed(format!("pg_dump cannot be started: {e}")))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // "pg_dump (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"
        let version =
            text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit())).unwrap_or_default();
        let major = version.chars().take_while(char::is_ascii_digit).collect::<String>().parse();
        let major = major.map_err(|_| failed(format!("pg_dump --version answers {}", Quoted(text.trim()))))?;
        Ok(Version { text: version.to_owned(), major })
    }

    /// Starts a program with arguments and the environment of a connection.
    ///
    /// # Errors
    /// `DumpFailed` if it cannot be started.
    pub fn start(
        &self,
        program: &'static str,
        arguments: &[String],
        env: &[(&'static str, String)],
    ) -> Result<Running, Failure> {
        let mut command = self.command(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, value) in env {
            command.env(name, value);
        }
        let mut child = command.spawn().map_err(|e| failed(format!("{program} cannot be started: {e}")))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or_else(|| failed(format!("{program} has no standard output")))?;
        let stderr = child.stderr.take().ok_or_else(|| failed(format!("{program} has no standard error")))?;
        let process = Process { program, child, stderr: tokio::spawn(keep_beginning(stderr)) };
        Ok(Running { stdin, stdout, process, reader: None })
    }

    fn command(&self, program: &str) -> Command {
        let mut command =
            Command::new(self.folder.as_ref().map_or_else(|| PathBuf::from(program), |f| f.join(program)));
        // A PGSERVICEFILE or ~/.pgpass of the surroundings must not lead to another server.
        command.env_clear().env("LC_ALL", "C").env("HOME", "/nonexistent").kill_on_drop(true);
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command
    }
}

/// A child process, or two, of which the second reads what the first writes.
pub struct Running {
    /// Standard input of the first; dropped to say that there is no more.
    pub stdin: Option<ChildStdin>,
    /// Standard output of the last.
    pub stdout: ChildStdout,
    process: Process,
    reader: Option<Process>,
}

impl Running {
    /// Passes the SQL that the program writes on to another one, without the line `left_out` of the settings at its
    /// start.
    #[must_use]
    pub fn piped_into(mut self, mut reader: Running, left_out: &'static str) -> Self {
        let script = std::mem::replace(&mut self.stdout, reader.stdout);
        if let Some(stdin) = reader.stdin.take() {
            // Its end closes both pipes. Why it failed, if it did, both programs say themselves.
            tokio::spawn(pass_script(script, stdin, left_out));
        }
        self.reader = Some(reader.process);
        self
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// `DumpFailed` if a program did not exit with 0, with the line that names the error.
    pub async fn end(mut self) -> Result<(), Failure> {
        drop(self.stdin.take());
        // A child that still writes would never end if its output were not read.
        drop(self.stdout);
        // A reader that failed makes the writer fail, too, and is the better explanation.
        let read = match self.reader {
            Some(reader) => reader.end().await,
            None => Ok(()),
        };
        let written = self.process.end().await;
        read.and(written)
    }
}

struct Process {
    program: &'static str,
    child: Child,
    stderr: JoinHandle<String>,
}

impl Process {
    async fn end(mut self) -> Result<(), Failure> {
        let status = self.child.wait().await.map_err(|e| failed(format!("{}: {e}", self.program)))?;
        let stderr = self.stderr.await.unwrap_or_default();
        if status.success() {
            for line in stderr.lines().filter(|line| line.contains("warning:") || is_error(line)) {
                tracing::warn!(program = self.program, detail = harmless(line), "the program warned");
            }
            return Ok(());
        }
        let error = first_error(&stderr).unwrap_or_else(|| "no error message".to_owned());
        Err(failed(format!("{} ended with {status}: {error}", self.program)))
    }
}

/// Copies a script of `pg_restore` without one line of the settings at its start. After them may come data that reads
/// like it.
async fn pass_script(
    script: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    left_out: &str,
) -> io::Result<()> {
    let mut script = BufReader::with_capacity(1 << 16, script);
    let (mut line, mut settings) = (Vec::new(), true);
    while settings && script.read_until(b'\n', &mut line).await? > 0 {
        let text = line.trim_ascii_end();
        settings = text.is_empty()
            || [&b"--"[..], b"\\restrict ", b"SET ", b"SELECT pg_catalog.set_config("]
                .iter()
                .any(|start| text.starts_with(start));
        if !(settings && text == left_out.as_bytes()) {
            to.write_all(&line).await?;
        }
        line.clear();
    }
    io::copy_buf(&mut script, &mut to).await?;
    to.shutdown().await
}

fn failed(message: String) -> Failure {
    Failure::new(Reason::DumpFailed, message)
}

/// Reads to the end and keeps the first 16 KiB.
pub(in crate::runner) async fn keep_beginning(mut stderr: impl AsyncRead + Unpin) -> String {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        let room = MAX_STDERR_BYTES - kept.len();
        kept.extend_from_slice(&buffer[..read.min(room)]);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// The first line that reports an error.
fn first_error(stderr: &str) -> Option<String> {
    stderr.lines().find(|line| is_error(line)).map(harmless)
}

/// Whether a line names an error. Only which line is repeated depends on it: the exit code says whether there was one.
fn is_error(line: &str) -> bool {
    ["error:", "ERROR:", "FATAL:"].iter().any(|marker| line.contains(marker))
}

/// A line without what may quote a row. The message of the server is in a language of its own. In every one it comes
/// after its severity, a colon and two spaces; values are between quotes or after another colon. What a statement
/// without data of its own quotes is a name: which these are `pg_restore` says, and `psql` by the SQLSTATE in front.
fn harmless(line: &str) -> String {
    let line = line.split_once(":  ").map_or(line.to_owned(), |(before, message)| {
        let (state, message) = match message.split_once(": ") {
            Some((state, message)) if before.starts_with("psql:") => (state, message),
            _ => ("", message),
        };
        let message = message.split(':').next().unwrap_or_default().trim_end();
        let of_names = ["could not execute query", "query failed"].iter().any(|statement| before.contains(statement))
            // Unknown names, missing rights; what the server cannot do.
            || ["42", "0A"].iter().any(|class| state.starts_with(class));
        let message = if of_names { message.to_owned() } else { without_quoted(message) };
        format!("{before}:  {message}")
    });
    line.chars().take(400).collect()
}

/// `text` without all between its first and its last quote: a value may hold quotes.
fn without_quoted(text: &str) -> String {
    let quote = ['"', '«', '»', '„', '“', '”', '‹', '›', '「', '」'];
    match (text.find(quote), text.rfind(quote)) {
        (Some(first), Some(last)) if first < last => {
            let after = &text[last..];
            format!("{}…{}", &text[..first], &after[after.chars().next().map_or(0, char::len_utf8)..])
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_script_passes_without_one_setting_and_with_all_data() {
        let settings = "--\n-- PostgreSQL database dump\n\n\\restrict x\n\nSET lock_timeout = 0;\n";
        let rest = "SELECT pg_catalog.set_config('search_path', '', false);\nSET row_security = on;\n\n-- Name: t\n
            CREATE TABLE public.t (x text);\nCOPY public.t (x) FROM stdin;\nSET a = 0;\n\\.\n\nSET a = 0;\nno end";
        let mut passed = Vec::new();
        pass_script(format!("{settings}SET a = 0;\n{rest}").as_bytes(), &mut passed, "SET a = 0;").await.unwrap();
        assert_eq!(String::from_utf8(passed).unwrap(), format!("{settings}{rest}"));
    }

    #[test]
    fn repeats_errors_without_values() {
        let stderr = "pg_restore: warning: x\npg_restore: error: COPY failed for table \"users\": ERROR:  invalid \
            input syntax for type bigint: \"ann@example.com\"\nCONTEXT:  COPY users, line 1: \"ann\"\n";
        assert_eq!(
            first_error(stderr).unwrap(),
            "pg_restore: error: COPY failed for table \"users\": ERROR:  invalid input syntax for type bigint"
        );
        assert_eq!(first_error("pg_dump: warning: circular\n"), None);
        for (line, want) in [
            (
                "pg_restore: error: COPY failed for table \"users\": FEHLER:  ungültige Eingabesyntax für Typ bigint: \
                 »ann@example.com«",
                "pg_restore: error: COPY failed for table \"users\": FEHLER:  ungültige Eingabesyntax für Typ bigint",
            ),
            (
                "pg_restore: error: COPY failed for table \"users\": ERREUR:  la valeur « 99999 » est en dehors des \
                 limites",
                "pg_restore: error: COPY failed for table \"users\": ERREUR:  la valeur … est en dehors des limites",
            ),
            (
                "psql:<stdin>:9: ERROR:  22P02: invalid input syntax for type bigint: \"ann@example.com\"",
                "psql:<stdin>:9: ERROR:  invalid input syntax for type bigint",
            ),
            ("psql:<stdin>:9: ERROR:  P0001: no \"ann\" here", "psql:<stdin>:9: ERROR:  no … here"),
            (
                "psql:<stdin>:9: ERROR:  42P01: relation \"users\" does not exist",
                "psql:<stdin>:9: ERROR:  relation \"users\" does not exist",
            ),
            (
                "pg_restore: error: could not execute query: FEHLER:  Relation »users« existiert nicht",
                "pg_restore: error: could not execute query: FEHLER:  Relation »users« existiert nicht",
            ),
        ] {
            assert_eq!(harmless(line), want);
        }
    }
}
