//! Texts with their index, which lags behind: a token is put into it when that is worth it, and not when it is drawn.

use std::collections::VecDeque;

use crate::index::{Find, Index, Kind, MAX_CONTEXT_LEN, Place};
use crate::texts::{Text, TextId, Texts};

/// Tokens of texts that ended.
const MOST_ENDED_TOKENS: usize = 1 << 20;
/// 32 MiB, for all contexts of about half a million tokens.
const SLOTS_LOG2: u32 = 22;
/// The most tokens of one text that are put into the index at a time.
pub(crate) const PORTION: usize = 256;
/// The most texts that wait for the index: those that waited longest are left out of it.
const MOST_WAITING: usize = 1 << 14;
/// Drafts less likely than this are not looked for.
const LEAST_PROBABILITY: f64 = 0.02;

/// A token that a text may go on with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Expected {
    pub(crate) token: u32,
    pub(crate) kind: Kind,
    /// That it and all before it are right.
    pub(crate) probability: f64,
}

/// All texts.
pub(crate) struct Library {
    texts: Texts,
    index: Index,
    /// Texts with tokens that are not in the index: prompts, and responses that ended.
    prompts: VecDeque<TextId>,
    ended: VecDeque<TextId>,
    num_taken_ops: u64,
}

impl Default for Library {
    fn default() -> Self {
        Self {
            texts: Texts::default(),
            index: Index::new(SLOTS_LOG2),
            prompts: VecDeque::new(),
            ended: VecDeque::new(),
            num_taken_ops: 0,
        }
    }
}

impl Library {
    /// The prompt of a request.
    pub(crate) fn begin_prompt(&mut self, tokens: &[u32], scope: u64) -> TextId {
        let id = self.texts.begin(Text { tokens: tokens.to_vec(), scope, next_end: 1 });
        wait(&mut self.prompts, id);
        id
    }

    /// A response to it, whose text begins with the end of the prompt.
    pub(crate) fn begin_response(&mut self, prompt: &[u32], scope: u64) -> TextId {
        let tokens = prompt[prompt.len().saturating_sub(MAX_CONTEXT_LEN)..].to_vec();
        let next_end = tokens.len().max(1);
        self.texts.begin(Text { tokens, scope, next_end })
    }

    /// A text goes on.
    pub(crate) fn push(&mut self, id: TextId, tokens: &[u32]) {
        if let Some(text) = self.texts.text_mut(id) {
            text.tokens.extend_from_slice(tokens);
        }
    }

    /// A text grows no more. It is put into the index in its turn.
    pub(crate) fn end(&mut self, id: TextId) {
        wait(&mut self.ended, id);
        self.texts.end(id, MOST_ENDED_TOKENS);
    }

    /// Puts the next tokens of a text into the index, at most so many; returns how many.
    pub(crate) fn catch_up(&mut self, id: TextId, most_tokens: usize) -> usize {
        let Some(text) = self.texts.text_mut(id) else { return 0 };
        let pending = text.pending();
        let end = pending.end.min(pending.start.saturating_add(most_tokens));
        text.next_end = end;
        let Text { tokens, scope, .. } = &*text;
        for end in pending.start..end {
            self.index.insert(tokens, Place { text: id, end }, *scope);
        }
        end - pending.start
    }

    /// Puts a portion of a prompt that waits into the index; whether there was one.
    pub(crate) fn work_on_prompts(&mut self) -> bool {
        let Some(&id) = self.prompts.front() else { return false };
        if self.catch_up(id, PORTION) < PORTION {
            self.prompts.pop_front();
        }
        true
    }

    /// The same for a response that ended.
    pub(crate) fn work_on_ended(&mut self) -> bool {
        let Some(&id) = self.ended.front() else { return false };
        if self.catch_up(id, PORTION) < PORTION {
            self.ended.pop_front();
        }
        true
    }

    /// Whether every prompt is in the index.
    pub(crate) fn has_prompts(&self) -> bool {
        self.prompts.is_empty()
    }

    /// Slots of the index that were read or written since this was asked last.
    pub(crate) fn take_ops(&mut self) -> u64 {
        let num_before = std::mem::replace(&mut self.num_taken_ops, self.index.num_ops());
        self.index.num_ops() - num_before
    }

    /// How a text may go on, by at most so many tokens, where predictions of each kind are right at a `rate`. The first is
    /// there even where it is hardly likely.
    pub(crate) fn continue_text(
        &mut self,
        id: TextId,
        most_tokens: usize,
        rate: impl Fn(Kind) -> f64,
        expected: &mut Vec<Expected>,
    ) {
        expected.clear();
        let Some(text) = self.texts.text_mut(id) else { return };
        let (num_tokens, scope) = (text.tokens.len(), text.scope);
        let mut probability = 1.0;
        let mut found: Option<Find> = None;
        while expected.len() < most_tokens {
            // What follows a place goes on there; only where that text ends, another place is looked for.
            let goes_on = |find: &Find| find.place.end < self.texts.get(find.place.text).len();
            let at =
                found.filter(goes_on).or_else(|| self.index.find(&self.texts, self.texts.get(id), scope));
            let Some(find) = at else { break };
            let Some(&token) = self.texts.get(find.place.text).get(find.place.end) else { break };
            let kind = Kind::new(find.len, find.is_shared);
            probability *= rate(kind);
            if probability < LEAST_PROBABILITY && !expected.is_empty() {
                break;
            }
            expected.push(Expected { token, kind, probability });
            self.push(id, &[token]);
            let place = Place { end: find.place.end + 1, ..find.place };
            found = Some(Find { place, len: find.len + 1, ..find });
        }
        if let Some(text) = self.texts.text_mut(id) {
            text.tokens.truncate(num_tokens);
        }
    }
}

/// Lets a text wait for the index.
fn wait(waiting: &mut VecDeque<TextId>, id: TextId) {
    if waiting.len() == MOST_WAITING {
        waiting.pop_front();
    }
    waiting.push_back(id);
}

#[cfg(test)]
impl Library {
    /// Slots of the index that were read or written.
    pub(crate) fn num_ops(&self) -> u64 {
        self.index.num_ops()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(library: &mut Library, id: TextId, most: usize) -> Vec<u32> {
        let mut expected = Vec::new();
        library.continue_text(id, most, |_| 0.9, &mut expected);
        expected.iter().map(|expected| expected.token).collect()
    }

    #[test]
    fn a_text_is_in_the_index_when_it_was_worked_on() {
        let mut library = Library::default();
        let prompt: Vec<u32> = (0..400).collect();
        library.begin_prompt(&prompt, 0);
        let response = library.begin_response(&prompt, 0);
        library.push(response, &[20]);
        assert_eq!(library.take_ops(), 0);
        assert!(tokens(&mut library, response, 9).is_empty());
        assert!(library.work_on_prompts() && !library.has_prompts());
        assert_eq!(tokens(&mut library, response, 2), [21, 22]);
        assert!(library.work_on_prompts() && library.has_prompts());
        assert!(!library.work_on_prompts() && !library.work_on_ended());
        library.push(response, &[398, 5]);
        assert_eq!(tokens(&mut library, response, 1), [6]);
        assert_eq!(library.catch_up(response, PORTION), 3);
        assert_eq!(library.catch_up(response, PORTION), 0);
        // 399 contexts of the prompt with five slots each, those at its front with fewer, three of the response, and looks.
        let ops = library.take_ops();
        assert!((1990..2150).contains(&ops), "{ops}");
    }

    #[test]
    fn a_token_costs_nothing_until_it_is_worked_on() {
        let mut library = Library::default();
        let response = library.begin_response(&[1, 2, 3], 0);
        (0..10_000).for_each(|token| library.push(response, &[token]));
        assert_eq!(library.take_ops(), 0);
        assert_eq!(library.catch_up(response, PORTION), PORTION);
        assert!(library.take_ops() <= 5 * PORTION as u64);
    }
}
