//! Archive: the answer within a zip, unpacked as its bytes come.
//!
//! NVCF puts answers above 5 MiB into `application/zip` files that hold `<request id>.response` and whatever the
//! container wrote besides. Nothing but the first file is unpacked: where that is no answer, the archive is for the
//! caller as it is. The format is that of APPNOTE 6.3, sections 4.3.7 and 4.3.9.

use bytes::{Buf as _, Bytes, BytesMut};
use flate2::{Crc, Decompress, FlushDecompress, Status};

/// Length of a local header without its names.
const HEADER: usize = 30;
const HEADER_MARK: &[u8] = b"PK\x03\x04";
const DESCRIPTOR_MARK: &[u8] = b"PK\x07\x08";
/// A descriptor's mark and checksum.
const DESCRIPTOR: usize = 8;
/// Stands where the extra field has the length.
const IN_EXTRA: u32 = u32::MAX;
const ZIP64: u16 = 1;
/// How an answer's file ends.
const ANSWER: &[u8] = b".response";
/// Most bytes inflated at a time.
const STEP: usize = 64 * 1024;

const ENCRYPTED: u16 = 1;
const DESCRIBED: u16 = 1 << 3;

/// Why an archive can not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// It is no zip, or uses what NVCF does not.
    Format,
    /// It ends within its first file.
    Truncated,
    /// What was unpacked is not what was packed.
    Checksum,
    /// It unpacks to more than it may.
    TooLarge,
}

/// What the first file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Whether it is an answer. Anything else is not unpacked.
    pub is_answer: bool,
    /// Its length in bytes, where it is an answer and that is stated.
    pub length: Option<u64>,
}

/// Unpacks the first file of an archive.
pub struct Unpacker {
    state: State,
    /// Bytes that came last, as far as they were not read.
    input: Bytes,
    /// A header or descriptor in part.
    buffer: BytesMut,
    file: Option<File>,
    crc: Crc,
    /// The checksum by the header; none where a descriptor has it.
    stated: Option<u32>,
    length: u64,
    most: u64,
}

enum State {
    Header,
    /// So many bytes are stored.
    Stored(u64),
    Deflated(Box<Decompress>),
    Descriptor,
    /// The file is over.
    Done,
}

impl Unpacker {
    /// For a file of at most so many bytes.
    pub fn new(most: u64) -> Self {
        let (state, input, buffer) = (State::Header, Bytes::new(), BytesMut::new());
        Self { state, input, buffer, file: None, crc: Crc::new(), stated: None, length: 0, most }
    }

    /// What the first file is, once so much was read.
    pub fn file(&self) -> Option<File> {
        self.file
    }

    /// Whether the file is over and was whole.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Takes the next bytes of the archive in, after [`Self::piece`] has nothing more of those before.
    pub fn push(&mut self, bytes: Bytes) {
        self.input = bytes;
    }

    /// The next piece of the file, of 64 KiB at most where it was packed; none when more of the archive is needed, or the
    /// file is over.
    pub fn piece(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            let piece = match &mut self.state {
                State::Header => {
                    self.buffer.extend_from_slice(&std::mem::take(&mut self.input));
                    if !self.read_header()? {
                        return Ok(None);
                    }
                    self.input = self.buffer.split().freeze();
                    continue;
                }
                State::Stored(left) => {
                    let now = usize::try_from(*left).unwrap_or(usize::MAX).min(self.input.len());
                    let piece = self.input.split_to(now);
                    *left -= piece.len() as u64;
                    let is_over = *left == 0;
                    self.note(&piece)?;
                    if is_over {
                        self.finish()?;
                    }
                    piece
                }
                State::Deflated(inflate) => {
                    let mut piece = vec![0; STEP];
                    let (read, written) = (inflate.total_in(), inflate.total_out());
                    let status = inflate.decompress(&self.input, &mut piece, FlushDecompress::None);
                    let status = status.map_err(|_| Broken::Format)?;
                    let (read, written) = (inflate.total_in() - read, inflate.total_out() - written);
                    self.input.advance(usize::try_from(read).unwrap_or(usize::MAX).min(self.input.len()));
                    piece.truncate(usize::try_from(written).unwrap_or(STEP));
                    self.note(&piece)?;
                    match status {
                        Status::StreamEnd if self.stated.is_none() => self.state = State::Descriptor,
                        Status::StreamEnd => self.finish()?,
                        _ if piece.is_empty() && read == 0 => return Ok(None),
                        _ => {}
                    }
                    piece.into()
                }
                State::Descriptor => {
                    self.buffer.extend_from_slice(&std::mem::take(&mut self.input));
                    if self.buffer.len() < DESCRIPTOR {
                        return Ok(None);
                    }
                    // Its mark may be left out.
                    let at = if self.buffer.starts_with(DESCRIPTOR_MARK) { 4 } else { 0 };
                    self.stated = Some((&self.buffer[at..]).get_u32_le());
                    self.finish()?;
                    Bytes::new()
                }
                State::Done => return Ok(None),
            };
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
            if matches!(self.state, State::Stored(_)) {
                return Ok(None);
            }
        }
    }

    /// The archive has ended.
    pub fn end(&self) -> Result<(), Broken> {
        if self.is_done() { Ok(()) } else { Err(Broken::Truncated) }
    }

    /// Reads the header of the first file from the buffer; `false` when it is not all there.
    fn read_header(&mut self) -> Result<bool, Broken> {
        let known = self.buffer.len().min(HEADER_MARK.len());
        if self.buffer[..known] != HEADER_MARK[..known] {
            return Err(Broken::Format);
        }
        if self.buffer.len() < HEADER {
            return Ok(false);
        }
        let mut fields = &self.buffer[HEADER_MARK.len() + 2..HEADER];
        let (flags, method) = (fields.get_u16_le(), fields.get_u16_le());
        fields.advance(4);
        let (crc, packed, length) = (fields.get_u32_le(), fields.get_u32_le(), fields.get_u32_le());
        let (name, extra) = (usize::from(fields.get_u16_le()), usize::from(fields.get_u16_le()));
        if self.buffer.len() < HEADER + name + extra {
            return Ok(false);
        }
        let header = self.buffer.split_to(HEADER + name + extra);
        let (name, extra) = header[HEADER..].split_at(name);
        let is_described = flags & DESCRIBED != 0;
        if !name.ends_with(ANSWER) {
            (self.state, self.file) = (State::Done, Some(File { is_answer: false, length: None }));
            return Ok(true);
        }
        let length = match length {
            IN_EXTRA => zip64(extra).ok_or(Broken::Format)?,
            length => length.into(),
        };
        self.state = match method {
            _ if flags & ENCRYPTED != 0 => return Err(Broken::Format),
            // Where it ends is not known.
            0 if is_described => return Err(Broken::Format),
            0 if packed != IN_EXTRA && u64::from(packed) != length => return Err(Broken::Format),
            0 => State::Stored(length),
            8 => State::Deflated(Box::new(Decompress::new(false))),
            _ => return Err(Broken::Format),
        };
        self.stated = (!is_described).then_some(crc);
        let length = (!is_described).then_some(length);
        if length.is_some_and(|length| length > self.most) {
            return Err(Broken::TooLarge);
        }
        self.file = Some(File { is_answer: true, length });
        Ok(true)
    }

    /// Counts a piece of the file.
    fn note(&mut self, piece: &[u8]) -> Result<(), Broken> {
        self.length += piece.len() as u64;
        let stated = self.file.and_then(|file| file.length);
        if self.length > self.most.min(stated.unwrap_or(u64::MAX)) {
            return Err(if stated.is_some() { Broken::Checksum } else { Broken::TooLarge });
        }
        self.crc.update(piece);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Broken> {
        self.state = State::Done;
        let is_whole = self.file.and_then(|file| file.length).is_none_or(|length| length == self.length);
        if is_whole && self.stated == Some(self.crc.sum()) { Ok(()) } else { Err(Broken::Checksum) }
    }
}

/// The length by the extra field of large files.
fn zip64(mut extra: &[u8]) -> Option<u64> {
    while extra.len() >= 4 {
        let (id, size) = (extra.get_u16_le(), usize::from(extra.get_u16_le()));
        let field = extra.get(..size)?;
        if id == ZIP64 {
            return field.first_chunk().map(|length| u64::from_le_bytes(*length));
        }
        extra.advance(size);
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::DeflateEncoder;

    use super::*;

    const MOST: u64 = 1 << 20;

    fn deflated(content: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    /// An archive of one file, with what archives have behind their files.
    fn archive(name: &str, method: u16, content: &[u8], is_described: bool) -> Vec<u8> {
        let packed = if method == 8 { deflated(content) } else { content.to_vec() };
        let mut crc = Crc::new();
        crc.update(content);
        let sizes = [crc.sum(), packed.len() as u32, content.len() as u32].map(u32::to_le_bytes).concat();
        let mut file =
            [HEADER_MARK, &[20, 0, if is_described { 8 } else { 0 }, 0], &method.to_le_bytes(), &[0; 4]].concat();
        file.extend(if is_described { vec![0; 12] } else { sizes.clone() });
        file.extend([&(name.len() as u16).to_le_bytes()[..], &[0; 2], name.as_bytes(), &packed].concat());
        if is_described {
            file.extend([DESCRIPTOR_MARK, &sizes].concat());
        }
        file.extend(b"PK\x01\x02 and so on");
        file
    }

    fn unpack(archive: &[u8], step: usize, most: u64) -> Result<(File, Vec<u8>), Broken> {
        let (mut unpacker, mut out) = (Unpacker::new(most), Vec::new());
        for piece in archive.chunks(step) {
            unpacker.push(Bytes::copy_from_slice(piece));
            while let Some(piece) = unpacker.piece()? {
                out.push(piece);
            }
        }
        unpacker.end()?;
        Ok((unpacker.file().unwrap(), out.concat()))
    }

    #[test]
    fn a_file_is_unpacked_whatever_pieces_it_comes_in() {
        let content: Vec<u8> = (0..200_000_u32).flat_map(|n| (n / 3).to_le_bytes()).collect();
        for (method, is_described) in [(0, false), (8, false), (8, true)] {
            let archive = archive("a.response", method, &content, is_described);
            for step in [1, 7, 1000, archive.len()] {
                let (file, found) = unpack(&archive, step, MOST).unwrap();
                let length = (!is_described).then_some(content.len() as u64);
                assert_eq!(file, File { is_answer: true, length });
                assert!(found == content, "method {method} in steps of {step}");
            }
        }
        assert_eq!(unpack(&archive("a.response", 0, b"", false), 5, MOST).unwrap().1, b"");
    }

    #[test]
    fn a_file_that_is_no_answer_is_told() {
        assert!(!unpack(&archive("video.mp4", 0, b"x", false), 9, MOST).unwrap().0.is_answer);
    }

    #[test]
    fn what_is_broken_is_refused() {
        let good = archive("a.response", 8, &[7; 5000], false);
        let cut = |at: usize| unpack(&good[..at], 11, MOST);
        for at in 0..good.len() - b"PK\x01\x02 and so on".len() {
            assert_eq!(cut(at).err(), Some(Broken::Truncated), "cut at {at}");
        }
        let mut wrong = good.clone();
        wrong[14] ^= 1;
        assert_eq!(unpack(&wrong, 50, MOST).err(), Some(Broken::Checksum));
        assert_eq!(unpack(b"<html>", 3, MOST).err(), Some(Broken::Format));
        assert_eq!(unpack(&archive("a.response", 0, b"x", true), 99, MOST).err(), Some(Broken::Format));
        assert_eq!(unpack(&archive("a.response", 12, b"x", false), 99, MOST).err(), Some(Broken::Format));
        let mut encrypted = good;
        encrypted[6] |= 1;
        assert_eq!(unpack(&encrypted, 99, MOST).err(), Some(Broken::Format));
    }

    #[test]
    fn a_bomb_is_bounded() {
        let content = vec![0; 3 << 20];
        for is_described in [false, true] {
            let bomb = archive("a.response", 8, &content, is_described);
            assert!(bomb.len() < 10_000);
            assert_eq!(unpack(&bomb, bomb.len(), MOST).err(), Some(Broken::TooLarge));
        }
        // It says that it is small.
        let mut liar = archive("a.response", 8, &content, false);
        liar[22..26].copy_from_slice(&10_u32.to_le_bytes());
        assert_eq!(unpack(&liar, 100, MOST).err(), Some(Broken::Checksum));
    }
}
