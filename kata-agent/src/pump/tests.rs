use std::io::Write;

use tokio::task::JoinHandle;

use super::*;

const MIB: usize = 1 << 20;

/// An output pump with its writer, its reader, and the process that it thinks of.
struct Bench {
    writer: Option<std::fs::File>,
    reader: Stream,
    exit: watch::Sender<Option<i32>>,
    settled: oneshot::Receiver<()>,
    pump: JoinHandle<()>,
}

fn bench() -> Bench {
    let (source, writer) = rustix::pipe::pipe().expect("a pipe");
    let (sink, reader) = Stream::pair().expect("a pair");
    let (exit, watched) = watch::channel(None);
    let (tell, settled) = oneshot::channel();
    let output = Output::new(
        end(source, Interest::READABLE).expect("an end"),
        Some(sink),
        false,
        Moved::default(),
    );
    let pump = tokio::spawn(output.run(watched, tell));
    Bench {
        writer: Some(writer.into()),
        reader,
        exit,
        settled,
        pump,
    }
}

impl Bench {
    /// Writes on a thread, as a process would.
    fn write(&mut self, bytes: usize) -> std::thread::JoinHandle<std::io::Result<()>> {
        let mut writer = self.writer.as_ref().expect("open").try_clone().expect("cloned");
        std::thread::spawn(move || writer.write_all(&vec![7; bytes]))
    }
}

async fn count(reader: &mut Stream) -> usize {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut total = 0;
    loop {
        match reader.read(&mut buffer).await.expect("read") {
            0 => return total,
            read => total += read,
        }
    }
}

#[tokio::test]
async fn sixty_four_mebibytes_arrive_whole() {
    let mut bench = bench();
    let writing = bench.write(64 * MIB);
    bench.writer.take();
    assert_eq!(count(&mut bench.reader).await, 64 * MIB);
    (&mut bench.settled).await.expect("settled");
    bench.pump.await.expect("ended");
    writing.join().expect("no panic").expect("written");
}

#[tokio::test]
async fn what_was_written_before_the_exit_comes_before_the_end_and_the_end_before_the_exit_is_told() {
    let mut bench = bench();
    bench.write(30_000).join().expect("no panic").expect("written");
    bench.exit.send_replace(Some(0));
    (&mut bench.settled).await.expect("settled");
    // All of it, and the end, can be read without anything further happening.
    let mut bytes = vec![0; MIB];
    let mut total = 0;
    loop {
        match rustix::io::read(&bench.reader, &mut bytes).expect("no waiting") {
            0 => break,
            read => total += read,
        }
    }
    assert_eq!(total, 30_000);
}

#[tokio::test]
async fn a_grandchild_delays_nothing_and_is_read_on() {
    let mut bench = bench();
    bench.write(10).join().expect("no panic").expect("written");
    bench.exit.send_replace(Some(0));
    assert_eq!(count(&mut bench.reader).await, 10);
    (&mut bench.settled).await.expect("settled");
    let grandchild = bench.write(4 * MIB);
    tokio::task::yield_now().await;
    bench.writer.take();
    bench.pump.await.expect("the pump reads to the end");
    grandchild.join().expect("no panic").expect("no broken pipe");
}

#[tokio::test]
async fn a_reader_that_is_gone_costs_the_writer_nothing() {
    let Bench {
        writer,
        reader,
        exit,
        settled,
        pump,
    } = bench();
    drop(reader);
    let mut writer = writer.expect("open");
    let writing = std::thread::spawn(move || writer.write_all(&vec![7; 8 * MIB]));
    pump.await.expect("ended");
    settled.await.expect("settled");
    writing.join().expect("no panic").expect("no broken pipe");
    drop(exit);
}

#[tokio::test]
async fn a_reader_that_does_not_read_does_not_hold_the_exit_back() {
    let mut bench = bench();
    // All of it is in the pipe, and more than a socket takes.
    rustix::pipe::fcntl_setpipe_size(bench.writer.as_ref().expect("open"), MIB).expect("a large pipe");
    bench.write(MIB).join().expect("no panic").expect("written");
    bench.exit.send_replace(Some(0));
    (&mut bench.settled).await.expect("settled without a reader");
    bench.writer.take();
    assert_eq!(count(&mut bench.reader).await, MIB, "the rest follows");
}
