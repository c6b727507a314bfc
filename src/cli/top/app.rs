//! App: what is shown, and what keys do to it.

use std::time::Instant;

use anyhow::Result;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::seen::Seen;

/// The lists, in the order of Tab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Focus {
    Pools,
    Callers,
    Failures,
}

impl Focus {
    const ALL: [Self; 3] = [Self::Pools, Self::Callers, Self::Failures];
}

/// Why the gateway can not be asked, and since when.
pub(super) struct Trouble {
    pub(super) reason: String,
    pub(super) since: Instant,
}

pub(super) struct App {
    pub(super) address: String,
    pub(super) seen: Option<Seen>,
    pub(super) trouble: Option<Trouble>,
    pub(super) is_paused: bool,
    focus: usize,
    /// The first row that each list shows.
    first: [usize; 3],
}

impl App {
    pub(super) fn new(address: &str) -> Self {
        Self { address: address.to_owned(), seen: None, trouble: None, is_paused: false, focus: 0, first: [0; 3] }
    }

    /// Takes an answer, or why there is none. What was seen before is shown on.
    pub(super) fn take(&mut self, news: Result<Seen>) {
        match news {
            Ok(seen) => {
                self.trouble = None;
                if !self.is_paused {
                    self.seen = Some(seen);
                }
            }
            Err(error) => {
                let since = self.trouble.take().map_or_else(Instant::now, |trouble| trouble.since);
                self.trouble = Some(Trouble { reason: format!("{error:#}"), since });
            }
        }
    }

    /// Does what a key says; false to end.
    pub(super) fn key(&mut self, key: KeyEvent) -> bool {
        if key.kind == KeyEventKind::Release {
            return true;
        }
        let first = &mut self.first[self.focus];
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Char('p') => self.is_paused = !self.is_paused,
            KeyCode::Tab | KeyCode::Right => self.focus = (self.focus + 1) % Focus::ALL.len(),
            KeyCode::BackTab | KeyCode::Left => self.focus = (self.focus + Focus::ALL.len() - 1) % Focus::ALL.len(),
            KeyCode::Down => *first += 1,
            KeyCode::Up => *first = first.saturating_sub(1),
            KeyCode::PageDown => *first += 10,
            KeyCode::PageUp => *first = first.saturating_sub(10),
            KeyCode::Home => *first = 0,
            _ => {}
        }
        true
    }

    pub(super) fn focus(&self) -> Focus {
        Focus::ALL[self.focus]
    }

    /// The first row that a list shows, now that it has so many.
    pub(super) fn first(&mut self, focus: Focus, rows: usize) -> usize {
        let at = Focus::ALL.iter().position(|known| *known == focus).unwrap_or_default();
        self.first[at] = self.first[at].min(rows.saturating_sub(1));
        self.first[at]
    }
}
