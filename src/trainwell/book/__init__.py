"""The book's functions under the book's names: change the import of a notebook, keep its numbers, gain the rest.

Names, arguments, defaults, results, printed lines and random draws are those of Raschka, Build a Large Language Model
(From Scratch), chapters 2, 4, 5 and appendix D; schedule, clipping and step are trainwell's own.
"""

from trainwell.book.losses import calc_loss_batch as calc_loss_batch
from trainwell.book.losses import calc_loss_loader as calc_loss_loader
from trainwell.book.losses import evaluate_model as evaluate_model
from trainwell.book.losses import find_highest_gradient as find_highest_gradient
from trainwell.book.model import GPTModel as GPTModel
from trainwell.book.pictures import plot_losses as plot_losses
from trainwell.book.pictures import plot_lrs as plot_lrs
from trainwell.book.text import GPTDatasetV1 as GPTDatasetV1
from trainwell.book.text import create_dataloader_v1 as create_dataloader_v1
from trainwell.book.text import generate_and_print_sample as generate_and_print_sample
from trainwell.book.text import generate_text_simple as generate_text_simple
from trainwell.book.text import get_encoding as get_encoding
from trainwell.book.text import text_to_token_ids as text_to_token_ids
from trainwell.book.text import token_ids_to_text as token_ids_to_text
from trainwell.book.training import train_model as train_model
from trainwell.book.training import train_model_simple as train_model_simple
from trainwell.gradients import gradient_report as gradient_report
