use super::*;

#[test]
fn text_shows_problem_and_schedule() {
    let problem = GemmProblem::plain(128, 768, 3072);
    let schedule = GemmSchedule::choose(&problem, Products::F32, 16);
    let driver = Driver::Gemm(problem, schedule);
    let text = "gemm m 128 n 768 k 3072 batch []\n  a (3072, 1) b (768, 1) c (768, 1)\n  \
                epilogue direct activation none\n  schedule lanes 16 k_block 4096 m_block 42";
    assert_eq!(driver.to_string(), text);
}

#[test]
fn extents_map_and_survive_serialisation() {
    let problem = RelayoutProblem {
        direction: Direction::ToBlocked,
        lanes: 16,
        batch: "n",
        channels: "3",
        spatial: vec!["h", "w"],
        halo: vec!["1", "1"],
        blocked_batch_stride: "s",
        row_major_batch_stride: "r",
    };
    let driver = Driver::Relayout(problem).map(&mut |d: &&str| d.len());
    assert_eq!(
        driver.to_string(),
        "relayout to_blocked lanes 16 batch 1 channels 1 spatial [1, 1] halo [1, 1] strides 1 1"
    );
    let json = serde_json::to_string(&driver).expect("plain data");
    assert_eq!(serde_json::from_str::<Driver>(&json).expect("plain data"), driver);
}
