//! The texts that drafts are taken from. Those in flight are all held; of those that ended, the newest, up to a number of
//! tokens.

use std::collections::VecDeque;

/// Number of a text. It becomes that of another one when the text is dropped.
pub(crate) type TextId = u32;

/// Texts by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    texts: Vec<Vec<u32>>,
    /// Numbers of no text.
    free: Vec<TextId>,
    /// Those that ended, oldest first.
    ended: VecDeque<TextId>,
    num_ended_tokens: usize,
}

impl Texts {
    /// A text that may grow until it ends.
    pub(crate) fn begin(&mut self, tokens: Vec<u32>) -> TextId {
        if let Some(id) = self.free.pop() {
            self.texts[id as usize] = tokens;
            return id;
        }
        self.texts.push(tokens);
        self.texts.len() as TextId - 1
    }

    /// The tokens of a text; none of one that is not there.
    pub(crate) fn get(&self, id: TextId) -> &[u32] {
        self.texts.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// Lets a text grow by a token.
    pub(crate) fn push(&mut self, id: TextId, token: u32) {
        if let Some(text) = self.texts.get_mut(id as usize) {
            text.push(token);
        }
    }

    /// Takes back what a text grew by after it had this many tokens.
    pub(crate) fn truncate(&mut self, id: TextId, num_tokens: usize) {
        if let Some(text) = self.texts.get_mut(id as usize) {
            text.truncate(num_tokens);
        }
    }

    /// A text grows no more. It stays until there are more than `most_tokens` in such texts and it is the oldest.
    pub(crate) fn end(&mut self, id: TextId, most_tokens: usize) {
        self.num_ended_tokens += self.get(id).len();
        self.ended.push_back(id);
        while self.num_ended_tokens > most_tokens
            && let Some(oldest) = self.ended.pop_front()
        {
            self.num_ended_tokens -= self.get(oldest).len();
            self.texts[oldest as usize] = Vec::new();
            self.free.push(oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_texts_that_ended_go() {
        let mut texts = Texts::default();
        let ids: Vec<TextId> = (0..4).map(|idx| texts.begin(vec![idx; 10])).collect();
        texts.end(ids[1], 25);
        texts.end(ids[0], 25);
        assert_eq!(texts.get(ids[1]).len(), 10);
        texts.end(ids[3], 25);
        assert_eq!([0, 1, 2, 3].map(|idx| texts.get(ids[idx]).len()), [10, 0, 10, 10]);
        assert_eq!(texts.begin(vec![9]), ids[1]);
        assert_eq!(texts.get(77), &[0; 0]);
    }

    #[test]
    fn a_text_grows_and_shrinks() {
        let mut texts = Texts::default();
        let id = texts.begin(vec![1]);
        texts.push(id, 2);
        texts.push(id, 3);
        texts.truncate(id, 2);
        assert_eq!(texts.get(id), [1, 2]);
    }
}
