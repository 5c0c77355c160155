"""Which rows a rank reads: all of them once, the same a step for every number of ranks, alike ones together where asked."""

import pytest
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from vwlmm.sampler import GroupedRows, RankBatches, StreamedBatches, lengths_and_modalities


def shares(rows, batch, processes, **options):
    batches = BatchSampler(SequentialSampler(range(rows)), batch, drop_last=False)
    ranks = [RankBatches(batches, rank, processes, **options) for rank in range(processes)]
    found = [list(rank) for rank in ranks]
    assert [len(share) for share in found] == [len(rank) for rank in ranks]
    return found


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 8, 9, 12])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_row_is_read_once_and_every_rank_takes_the_same_number_of_batches(rows, processes):
    found = shares(rows, 2, processes)
    assert sorted(row for share in found for batch in share for row in batch) == list(range(rows))
    assert len({len(share) for share in found}) == 1


def test_a_step_of_many_ranks_has_the_rows_of_the_accumulated_batches_of_one():
    one, two = shares(12, 2, 1)[0], shares(12, 2, 2)
    for step in range(3):
        assert one[2 * step : 2 * step + 2] == [two[0][step], two[1][step]]


def test_ranks_that_get_nothing_in_the_last_round_get_an_empty_batch():
    assert shares(5, 2, 2) == [[[0, 1], [4]], [[2, 3], []]]
    assert shares(5, 2, 2, drop_last=True) == [[[0, 1]], [[2, 3]]]


class Stream:
    """Row numbers, encoded by counting them."""

    def __init__(self, rows):
        self.rows, self.encoder = rows, self

    def raw_records(self):
        yield from range(self.rows)

    def example(self, record):
        return record


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("rows", [0, 1, 5, 8, 13])
def test_a_stream_is_shared_as_numbered_rows_are_whatever_the_number_of_workers(rows, workers, drop_last):
    for processes in (1, 2, 3):
        batches = BatchSampler(SequentialSampler(range(rows)), 2, drop_last=drop_last)
        for rank in range(processes):
            stream = StreamedBatches(Stream(rows), 2, rank, processes, drop_last=drop_last)
            found = list(DataLoader(stream, batch_size=None, num_workers=workers, collate_fn=list))
            assert found == list(RankBatches(batches, rank, processes, drop_last=drop_last))


def grouped(lengths, has_image, batch=4, epoch=0):
    rows = GroupedRows(lengths, has_image, batch, seed=1)
    rows.set_epoch(epoch)
    order = list(rows)
    assert sorted(order) == list(range(len(lengths)))
    return [order[start : start + batch] for start in range(0, len(order), batch)]


LENGTHS = [(7 * n) % 50 + 1 for n in range(402)]
MIXED = [n % 3 != 0 for n in range(402)]


def test_grouped_batches_are_of_one_modality_except_what_is_left_over():
    batches = grouped(LENGTHS, MIXED)
    mixed = [batch for batch in batches if len({MIXED[row] for row in batch}) == 2]
    assert len(mixed) <= 1 + (len(LENGTHS) % 4 > 0)
    assert len(batches[-1]) == 2


def test_grouping_saves_padding():
    def padding(batches):
        return sum(
            max(LENGTHS[row] for row in batch) * len(batch) - sum(LENGTHS[row] for row in batch) for batch in batches
        )

    plain = [list(range(start, min(start + 4, 402))) for start in range(0, 402, 4)]
    assert padding(grouped(LENGTHS, MIXED)) < 0.2 * padding(plain)


@pytest.mark.parametrize("kind", [True, False])
def test_data_of_one_modality_are_grouped_as_well(kind):
    assert len(grouped(LENGTHS, [kind] * len(LENGTHS))) == 101


def test_each_epoch_has_its_own_order_and_the_same_one_every_time():
    assert grouped(LENGTHS, MIXED, epoch=1) == grouped(LENGTHS, MIXED, epoch=1)
    assert grouped(LENGTHS, MIXED, epoch=1) != grouped(LENGTHS, MIXED, epoch=2)


def test_lengths_count_image_tokens_and_open_no_image(trained, rows, tmp_path):
    from vwlmm import load_model
    from vwlmm.data.config import DataConfig
    from vwlmm.data.dataset import load_datasets

    processor = load_model(trained)[1]
    config = DataConfig(path=str(rows / "instruct.json"), images=str(rows / "images"), max_length=256)
    dataset = load_datasets(config, processor, seed=0)[0]
    lengths, has_image = lengths_and_modalities(dataset)
    assert lengths == [len(dataset[index]["input_ids"]) for index in range(len(dataset))]
    assert has_image == ["pixel_values" in dataset[index] for index in range(len(dataset))]


def test_streamed_rows_cannot_be_grouped():
    with pytest.raises(ValueError, match="group_by_length needs rows with a number and a length"):
        lengths_and_modalities(iter([1]))


def test_a_grouped_run_trains(tmp_path, trained, rows):
    from small_runs import recipe, sections

    from vwlmm.training import run

    content = sections(trained, rows, tmp_path / "out")
    options = ("training.train_sampling_strategy=group_by_length", "training.per_device_train_batch_size=2")
    assert (run(recipe(tmp_path / "out.yaml", content, *options, "training.max_steps=5")) / "result.json").is_file()
