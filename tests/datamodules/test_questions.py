from datamodules.questions import Vocabulary, words_of


def test_words() -> None:
    assert words_of("Isn't it: (a) black-and-white #1 photo, no/yes?") == [
        *("isnt", "it", "a", "black", "and", "white", "1", "photo", "no", "yes")
    ]


def test_a_vocabulary_is_in_order_of_appearance() -> None:
    vocabulary = Vocabulary.of(["Is it red?", "What is PAD?"])
    assert vocabulary.words == ("PAD", "UNK", "CLS", "is", "it", "red", "what", "pad")
    assert len(vocabulary) == 8
    assert vocabulary.encode("is THAT red", 5).tolist() == [3, 1, 5, 0, 0]
    assert vocabulary.encode("is it red", 2).tolist() == [3, 4]
    assert vocabulary.encode("?", 2).tolist() == [0, 0]
    # What is kept is the words.
    assert Vocabulary(vocabulary.words).numbers == vocabulary.numbers
