//! Folders of images.

use std::path::{Path, PathBuf};

use egret_ir::Tensor;
use image::imageops::FilterType;
use image::{DynamicImage, ImageReader, Limits};

use super::folder::{Classes, classes};
use super::{Batch, DataSet};
use crate::error::DataError;

/// Greatest extent of an image that is read.
const MOST_PIXELS: u32 = 1 << 15;

/// PNG and JPEG files in a folder for each class. They are read when they are asked for, and scaled to one extent:
/// `images` `f32[n, channels, height, width]` in 0..1 with three channels (one of grey), and `labels` `i64[n]`.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    found: Classes,
    height: u32,
    width: u32,
    grey: bool,
}

impl ImageFolder {
    /// The images of a folder's subfolders, each named by its class, at this extent.
    ///
    /// # Errors
    /// `E0602` a folder that cannot be read, `E0603` one without images, or an extent that is none.
    pub fn open(folder: &Path, height: usize, width: usize) -> Result<ImageFolder, DataError> {
        let extent = |n: usize| u32::try_from(n).ok().filter(|n| (1..=MOST_PIXELS).contains(n));
        let (Some(height), Some(width)) = (extent(height), extent(width)) else {
            let why = format!("no image has {height} × {width} pixels");
            return Err(DataError::Format { path: folder.into(), why });
        };
        Ok(ImageFolder { found: classes(folder, &["png", "jpg", "jpeg"])?, height, width, grey: false })
    }

    /// One channel: luminance.
    pub fn grey(mut self) -> ImageFolder {
        self.grey = true;
        self
    }

    /// Names of the classes; a label is a place here.
    pub fn classes(&self) -> &[String] {
        &self.found.names
    }
}

/// A PNG or JPEG image.
///
/// # Errors
/// `E0602` a file that cannot be read, `E0603` one that is no such image, or too large.
pub fn read_image(path: &Path) -> Result<DynamicImage, DataError> {
    let read = |source| DataError::Read { path: path.into(), source };
    let mut reader = ImageReader::open(path).map_err(read)?.with_guessed_format().map_err(read)?;
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MOST_PIXELS), Some(MOST_PIXELS));
    reader.limits(limits);
    reader.decode().map_err(|e| DataError::Format { path: path.into(), why: e.to_string() })
}

impl DataSet for ImageFolder {
    fn len(&self) -> usize {
        self.found.files.len()
    }

    fn batch(&self, rows: &[usize]) -> Result<Batch, DataError> {
        let (channels, pixels) = (if self.grey { 1 } else { 3 }, (self.height * self.width) as usize);
        let mut values = vec![0f32; rows.len() * channels * pixels];
        let mut labels = Vec::with_capacity(rows.len());
        for (row, to) in rows.iter().zip(values.chunks_exact_mut(channels * pixels)) {
            let len = self.len();
            let (path, label): &(PathBuf, i64) = self.found.files.get(*row).ok_or(DataError::Row { row: *row, len })?;
            let image = read_image(path)?;
            let image = match (image.height(), image.width()) == (self.height, self.width) {
                true => image,
                false => image.resize_exact(self.width, self.height, FilterType::Triangle),
            };
            let bytes = if self.grey { image.into_luma8().into_raw() } else { image.into_rgb8().into_raw() };
            // pixels of channels become channels of pixels
            for (i, pixel) in bytes.chunks_exact(channels).enumerate() {
                pixel.iter().enumerate().for_each(|(c, byte)| to[c * pixels + i] = f32::from(*byte) / 255.0);
            }
            labels.push(*label);
        }
        let shape = [rows.len(), channels, self.height as usize, self.width as usize];
        let tensors = Tensor::new(&shape, &values).zip(Tensor::new(&[rows.len()], &labels));
        let (images, labels) = tensors.ok_or_else(|| DataError::Rows { why: "a batch is too large".into() })?;
        Ok(vec![("images".into(), images), ("labels".into(), labels)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_scaled_and_labelled_by_folder() {
        let folder = std::env::temp_dir().join(format!("egret-images-{}", std::process::id()));
        for class in ["b", "a", "empty"] {
            std::fs::create_dir_all(folder.join(class)).unwrap();
        }
        let plain = |w: u32, h: u32, rgb: [u8; 3]| image::RgbImage::from_pixel(w, h, image::Rgb(rgb));
        plain(2, 3, [255, 0, 51]).save(folder.join("a/1.png")).unwrap();
        plain(9, 7, [255, 255, 255]).save(folder.join("b/1.JPG")).unwrap();
        std::fs::write(folder.join("b/2.png"), b"\x89PNG\r\n\x1a\nno image").unwrap();
        std::fs::write(folder.join("a/notes.txt"), "not an image").unwrap();
        let set = ImageFolder::open(&folder, 3, 2).unwrap();
        assert_eq!((set.classes(), set.len()), (&["a".to_string(), "b".to_string()][..], 3));
        let batch = set.batch(&[1, 0]).unwrap();
        assert_eq!((batch[0].1.shape(), batch[1].1.as_slice::<i64>()), (&[2, 3, 3, 2][..], Some(&[1i64, 0][..])));
        let x = batch[0].1.as_slice::<f32>().unwrap();
        assert!(x[..18].iter().all(|x| *x > 0.98), "{x:?}");
        assert_eq!((&x[18..24], &x[24..30], &x[30..]), (&[1.0; 6][..], &[0.0; 6][..], &[0.2; 6][..]));
        assert_eq!(set.clone().grey().batch(&[0]).unwrap()[0].1.shape(), [1, 1, 3, 2]);
        let error = set.batch(&[2]).unwrap_err();
        assert!(matches!(&error, DataError::Format { path, .. } if path.ends_with("b/2.png")), "{error}");
        assert!(matches!(set.batch(&[3]), Err(DataError::Row { row: 3, len: 3 })));
        assert!(matches!(ImageFolder::open(&folder.join("a"), 3, 2), Err(DataError::Format { .. })));
        assert!(matches!(ImageFolder::open(&folder, 0, 2), Err(DataError::Format { .. })));
        assert!(matches!(ImageFolder::open(&folder.join("none"), 3, 2), Err(DataError::Read { .. })));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
