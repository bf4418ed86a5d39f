//! Where one WebSocket frame ends and the next begins (RFC 6455, section 5.2), in bytes that only pass.
//!
//! A node that leaves says so with a close frame of its own, and that can stand between two frames only: in the middle
//! of one, the client would take it for part of the message.

use bytes::Bytes;

/// A close frame from a server, 1001: going away. Browsers take it for a reason to come back, not for a fault.
pub(super) const GOING_AWAY: Bytes = Bytes::from_static(&[0x88, 0x02, 0x03, 0xe9]);

/// How much of the present frame is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Frames {
    /// None of it was here yet.
    #[default]
    Border,
    /// Its first byte was here: the byte with its length comes next.
    Length,
    /// So many bytes of an extended length and of the mask; the length so far, and the mask's bytes after it.
    Head { length_left: u8, length: u64, mask: u8 },
    /// So many bytes of its payload, or of the mask before it.
    Rest(u64),
    /// It said close: nothing comes after it (section 5.5.1).
    Closed,
}

impl Frames {
    /// Takes note of bytes that pass.
    pub(super) fn pass(&mut self, mut data: &[u8]) {
        while let Some((&byte, rest)) = data.split_first() {
            *self = match *self {
                Frames::Closed => return,
                Frames::Border if byte & 0x0f == 8 => Frames::Closed,
                Frames::Border => Frames::Length,
                Frames::Length => {
                    let mask = if byte & 0x80 == 0 { 0 } else { 4 };
                    match byte & 0x7f {
                        126 => Frames::Head { length_left: 2, length: 0, mask },
                        127 => Frames::Head { length_left: 8, length: 0, mask },
                        short => Frames::payload(u64::from(short), mask),
                    }
                }
                Frames::Head { length_left, length, mask } => {
                    let length = length << 8 | u64::from(byte);
                    match length_left {
                        1 => Frames::payload(length, mask),
                        left => Frames::Head { length_left: left - 1, length, mask },
                    }
                }
                Frames::Rest(left) => {
                    let here = data.len() as u64;
                    if left > here {
                        *self = Frames::Rest(left - here);
                        return;
                    }
                    // As much as there is here, so it fits.
                    data = data.get(left as usize..).unwrap_or_default();
                    *self = Frames::Border;
                    continue;
                }
            };
            data = rest;
        }
    }

    /// May a frame of our own come now?
    pub(super) fn is_border(self) -> bool {
        self == Frames::Border
    }

    fn payload(length: u64, mask: u8) -> Frames {
        match length.saturating_add(u64::from(mask)) {
            0 => Frames::Border,
            rest => Frames::Rest(rest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![first];
        match length {
            0..=125 => frame.push(mask | length as u8),
            126..=0xffff => {
                frame.push(mask | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(vec![0x88; length + if masked { 4 } else { 0 }]);
        frame
    }

    #[test]
    fn borders_are_found_however_the_bytes_are_cut() {
        let frames: Vec<_> = [(0x81, 5), (0x01, 0), (0x00, 125), (0x89, 126), (0x82, 70_000), (0x80, 300)]
            .into_iter()
            .flat_map(|(first, length)| [frame(first, length, false), frame(first, length, true)])
            .collect();
        let mut borders = vec![0];
        for frame in &frames {
            borders.push(borders[borders.len() - 1] + frame.len());
        }
        let all = frames.concat();
        for step in [1, 2, 3, 7, 64, 4096, all.len()] {
            let (mut frames, mut at) = (Frames::default(), 0);
            for piece in all.chunks(step) {
                assert_eq!(frames.is_border(), borders.contains(&at), "at {at} by {step}");
                frames.pass(piece);
                at += piece.len();
            }
            assert!(frames.is_border(), "after all of it, by {step}");
        }
    }

    #[test]
    fn nothing_comes_after_a_close_frame_and_ours_is_one() {
        let mut frames = Frames::default();
        frames.pass(&GOING_AWAY);
        assert!(!frames.is_border());
        frames.pass(&frame(0x81, 1, false));
        assert!(!frames.is_border());
    }

    #[test]
    fn lengths_that_cannot_be_are_no_reason_to_panic() {
        let mut frames = Frames::default();
        frames.pass(&[0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5]);
        assert!(!frames.is_border());
    }
}
