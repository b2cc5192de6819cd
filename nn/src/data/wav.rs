//! WAV files.

use std::path::{Path, PathBuf};

use egret_ir::Tensor;
use hound::{SampleFormat, WavReader};

use super::folder::{Classes, classes};
use super::{Batch, DataSet};
use crate::error::DataError;

/// Most samples of a file.
const MOST_SAMPLES: u64 = 1 << 28;

/// A WAV file of integers or floats: `f32[channels, samples]` in −1..1, and samples a second.
///
/// # Errors
/// `E0602` a file that cannot be read, `E0603` one that is no WAV file, or too long.
pub fn read_wav(path: &Path) -> Result<(Tensor, u32), DataError> {
    let wrong = |why: String| DataError::Format { path: path.into(), why };
    let failed = |error: hound::Error| wrong(error.to_string());
    let file = std::fs::File::open(path).map_err(|source| DataError::Read { path: path.into(), source })?;
    let mut reader = WavReader::new(std::io::BufReader::new(file)).map_err(failed)?;
    let spec = reader.spec();
    let (channels, count) = (usize::from(spec.channels), u64::from(reader.len()));
    if count > MOST_SAMPLES || channels == 0 {
        return Err(wrong(format!("has {count} samples in {channels} channels")));
    }
    let read: Vec<f32> = match spec.sample_format {
        SampleFormat::Float => reader.samples::<f32>().collect::<Result<_, _>>().map_err(failed)?,
        SampleFormat::Int => {
            let full = (1u64 << (u32::from(spec.bits_per_sample).clamp(1, 32) - 1)) as f64;
            let samples = reader.samples::<i32>().map(|s| s.map(|s| (f64::from(s) / full) as f32));
            samples.collect::<Result<_, _>>().map_err(failed)?
        }
    };
    let frames = read.len() / channels;
    let mut wave = vec![0f32; channels * frames];
    for (i, frame) in read.chunks_exact(channels).enumerate() {
        frame.iter().enumerate().for_each(|(c, sample)| wave[c * frames + i] = *sample);
    }
    let wave = Tensor::new(&[channels, frames], &wave).ok_or_else(|| wrong("is too long".into()))?;
    Ok((wave, spec.sample_rate))
}

/// WAV files in a folder for each class. They are read when they are asked for, their channels averaged, and cut, or filled
/// with silence, to one length: `waves` `f32[n, samples]` in −1..1, and `labels` `i64[n]`.
#[derive(Clone, Debug)]
pub struct WavFolder {
    found: Classes,
    samples: usize,
    rate: u32,
}

impl WavFolder {
    /// The recordings of a folder's subfolders, each named by its class: of `rate` samples a second, the first `samples` of
    /// each.
    ///
    /// # Errors
    /// `E0602` a folder that cannot be read, `E0603` one without recordings.
    pub fn open(folder: &Path, samples: usize, rate: u32) -> Result<WavFolder, DataError> {
        Ok(WavFolder { found: classes(folder, &["wav"])?, samples, rate })
    }

    /// [`WavFolder::open`], at as many samples a second as the first recording has.
    ///
    /// # Errors
    /// Also what keeps the first recording from being read.
    pub fn any_rate(folder: &Path, samples: usize) -> Result<WavFolder, DataError> {
        let mut set = WavFolder::open(folder, samples, 0)?;
        set.rate = read_wav(&set.found.files[0].0)?.1;
        Ok(set)
    }

    /// Names of the classes; a label is a place here.
    pub fn classes(&self) -> &[String] {
        &self.found.names
    }
}

impl DataSet for WavFolder {
    fn len(&self) -> usize {
        self.found.files.len()
    }

    fn batch(&self, rows: &[usize]) -> Result<Batch, DataError> {
        let large = || DataError::Rows { why: "a batch is too large".into() };
        let mut values = vec![0f32; rows.len().checked_mul(self.samples).ok_or_else(large)?];
        let mut labels = Vec::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate() {
            let len = self.len();
            let (path, label): &(PathBuf, i64) = self.found.files.get(*row).ok_or(DataError::Row { row: *row, len })?;
            let (wave, rate) = read_wav(path)?;
            if rate != self.rate {
                let why = format!("has {rate} samples a second, not {}", self.rate);
                return Err(DataError::Format { path: path.clone(), why });
            }
            let (channels, frames) = (wave.shape()[0], wave.shape()[1]);
            let to = &mut values[at * self.samples..][..self.samples];
            for channel in wave.as_slice::<f32>().unwrap_or_default().chunks_exact(frames.max(1)) {
                to.iter_mut().zip(channel).for_each(|(sum, sample)| *sum += sample / channels as f32);
            }
            labels.push(*label);
        }
        let waves = Tensor::new(&[rows.len(), self.samples], &values).ok_or_else(large)?;
        let labels = Tensor::new(&[rows.len()], &labels).ok_or_else(large)?;
        Ok(vec![("waves".into(), waves), ("labels".into(), labels)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hound::{WavSpec, WavWriter};

    fn write(path: &Path, channels: u16, bits: u16, rate: u32, samples: &[i32]) {
        let spec = WavSpec { channels, sample_rate: rate, bits_per_sample: bits, sample_format: SampleFormat::Int };
        let mut writer = WavWriter::create(path, spec).unwrap();
        samples.iter().for_each(|s| writer.write_sample(*s).unwrap());
        writer.finalize().unwrap();
    }

    #[test]
    fn recordings_are_cut_and_filled_to_one_length() {
        let folder = std::env::temp_dir().join(format!("egret-wav-{}", std::process::id()));
        for class in ["no", "yes"] {
            std::fs::create_dir_all(folder.join(class)).unwrap();
        }
        write(&folder.join("yes/a.wav"), 1, 16, 8000, &[16384, -32768, 0, 8192]);
        write(&folder.join("no/a.wav"), 2, 24, 8000, &[1 << 22, -(1 << 22), 1 << 22, 1 << 22]);
        write(&folder.join("no/b.wav"), 1, 16, 16000, &[1]);
        let (wave, rate) = read_wav(&folder.join("no/a.wav")).unwrap();
        assert_eq!((wave, rate), (Tensor::new(&[2, 2], &[0.5f32, 0.5, -0.5, 0.5]).unwrap(), 8000));
        let set = WavFolder::open(&folder, 3, 8000).unwrap();
        assert_eq!(WavFolder::any_rate(&folder, 3).unwrap().rate, 8000);
        let batch = set.batch(&[2, 0]).unwrap();
        assert_eq!(batch[0].1, Tensor::new(&[2, 3], &[0.5f32, -1.0, 0.0, 0.0, 0.5, 0.0]).unwrap());
        assert_eq!(batch[1].1, Tensor::new(&[2], &[1i64, 0]).unwrap());
        let error = set.batch(&[1]).unwrap_err();
        assert!(error.to_string().ends_with("has 16000 samples a second, not 8000"), "{error}");
        // damaged files are errors, wherever they are cut
        let bytes = std::fs::read(folder.join("yes/a.wav")).unwrap();
        for cut in 0..bytes.len() {
            std::fs::write(folder.join("cut.wav"), &bytes[..cut]).unwrap();
            assert!(matches!(read_wav(&folder.join("cut.wav")), Err(DataError::Format { .. })), "{cut}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
