//! Top: a running gateway in a terminal, by the admin API.
//!
//! A thread of its own asks once a second, so that keys are heeded while a gateway is slow or away.

use std::io::{IsTerminal as _, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event};

use super::remote::Remote;

mod app;
mod seen;
#[cfg(test)]
mod tests;
mod view;

use app::App;
use seen::Seen;

/// Time between two looks.
const TICK: Duration = Duration::from_secs(1);
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often keys are looked for.
const HEED: Duration = Duration::from_millis(100);
/// The size of a picture that is printed.
const SIZE: (u16, u16) = (120, 48);

/// How a gateway is watched. Keys: q ends, Tab goes to the next list, arrows move in it, p stops the picture and goes on.
#[derive(Args, Debug)]
pub struct Top {
    /// Print one picture and end, as it is too where the output is no terminal.
    #[arg(long)]
    pub once: bool,
    /// Which gateway.
    #[command(flatten)]
    remote: Remote,
}

pub(super) fn run(top: &Top, out: &mut impl Write) -> Result<()> {
    if top.once || !std::io::stdout().is_terminal() {
        let line = top.remote.line(PATIENCE)?;
        let mut app = App::new(&top.remote.admin);
        app.take(Ok(Seen::ask(&line)?));
        return print(&mut app, out);
    }
    watch(&top.remote)
}

/// Draws into memory, and prints what would be seen.
fn print(app: &mut App, out: &mut impl Write) -> Result<()> {
    for line in picture(app, SIZE)? {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn picture(app: &mut App, (width, height): (u16, u16)) -> Result<Vec<String>> {
    let mut terminal = Terminal::new(TestBackend::new(width, height))?;
    terminal.draw(|frame| view::draw(app, frame))?;
    let cells = terminal.backend().buffer().content();
    let line = |row: &[ratatui::buffer::Cell]| {
        let text: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        text.trim_end().to_owned()
    };
    Ok(cells.chunks(usize::from(width)).map(line).collect())
}

fn watch(remote: &Remote) -> Result<()> {
    let (news, heard) = mpsc::channel();
    let is_paused = Arc::new(AtomicBool::new(false));
    let line = remote.line(PATIENCE)?;
    let pause = Arc::clone(&is_paused);
    std::thread::Builder::new().name("top".into()).spawn(move || {
        let told = |news: &Sender<_>| news.send(Seen::ask(&line)).is_ok();
        while pause.load(Ordering::Relaxed) || told(&news) {
            std::thread::sleep(TICK);
        }
    })?;
    let mut app = App::new(&remote.admin);
    let mut terminal = ratatui::try_init()?;
    let ended = loop {
        if let Err(error) = terminal.draw(|frame| view::draw(&mut app, frame)) {
            break Err(error.into());
        }
        match step(&mut app, &heard) {
            Ok(true) => is_paused.store(app.is_paused, Ordering::Relaxed),
            Ok(false) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    ratatui::restore();
    ended
}

/// Waits for keys and news for a moment; false when it is to end.
fn step(app: &mut App, heard: &mpsc::Receiver<Result<Seen>>) -> Result<bool> {
    while event::poll(Duration::ZERO)? {
        if let Event::Key(key) = event::read()?
            && !app.key(key)
        {
            return Ok(false);
        }
    }
    match heard.recv_timeout(HEED) {
        Ok(news) => app.take(news),
        Err(RecvTimeoutError::Timeout) => {}
        Err(RecvTimeoutError::Disconnected) => return Ok(false),
    }
    Ok(true)
}
